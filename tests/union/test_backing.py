"""The file system below a path."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from layerlimit.errors import Error, NotSupported
from layerlimit.linux.libc import os_error
from layerlimit.linux.statfs import Statfs, statfs
from layerlimit.union.backing import file_system, refuse_backing


def test_the_nearest_parent_that_exists_counts(tmp_path: Path) -> None:
    assert file_system(tmp_path / "a" / "b").type == statfs(tmp_path).type
    assert file_system(Path("/proc/none")).type == statfs("/proc").type


def test_a_refusal_names_the_path_and_the_kind() -> None:
    with pytest.raises(NotSupported, match="/proc/none lies on 0x9fa0, which overlay cannot use") as caught:
        refuse_backing(Path("/proc/none"), {0x9FA0}, "overlay")
    assert caught.value.hint
    refuse_backing(Path("/proc/none"), {0xEF53}, "overlay")


def test_what_cannot_be_looked_at_is_an_error_not_a_parent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="look at the file system"):
        file_system(tmp_path / "file" / "below")

    def gone(path: Path) -> Statfs:
        raise os_error(errno.ENOENT, "statfs", path)

    with pytest.raises(Error, match="look at the file system"):
        file_system(tmp_path, look=gone)
