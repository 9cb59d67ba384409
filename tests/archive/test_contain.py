"""Names are cleaned, and directories opened and made below the root only."""

from __future__ import annotations

import os
import posixpath
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlimit.archive.contain import Tree, clean
from layerlimit.archive.deletions import deletions_of
from layerlimit.archive.form import Form
from layerlimit.errors import InvalidArgument


@pytest.mark.parametrize(
    ("name", "expected"),
    [(b"", b""), (b".", b""), (b"/", b""), (b"a/..", b""), (b"./a//b/", b"a/b"), (b"/a/x/../b", b"a/b")],
)
def test_clean(name: bytes, expected: bytes) -> None:
    assert clean(name) == expected


@given(st.lists(st.sampled_from([b"a", b"b", b".", b"..", b"", b"..."]), max_size=8))
def test_clean_is_what_posixpath_says(parts: list[bytes]) -> None:
    name = b"/".join(parts)
    said = posixpath.normpath(name.lstrip(b"/") or b".")
    if said == b".." or said.startswith(b"../"):
        with pytest.raises(InvalidArgument) as raised:
            clean(name)
        assert raised.value.code == "archive.breakout"
    else:
        assert clean(name) == (b"" if said == b"." else said)


@pytest.mark.lane("root")
def test_mounts_below_the_root_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "root/mount").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "other", tmp_path / "root/mount"], check=True)
    try:
        with Tree(tmp_path / "root", deletions_of(Form.FLAT, userxattr=False)) as tree:
            with pytest.raises(OSError, match="cross-device"):
                tree.ensure(b"mount")
    finally:
        subprocess.run(["umount", tmp_path / "root/mount"], check=True)


def test_lower_that_is_missing(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Tree(tmp_path, deletions_of(Form.FLAT, userxattr=False), lowers=[tmp_path / "no"]).__enter__()
    assert set(os.listdir("/proc/self/fd")) == before


def test_directories_that_vanish_are_made_again(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Tree(tmp_path, deletions_of(Form.FLAT, userxattr=False)) as tree:
        for _ in range(3):
            os.mkdir(tmp_path / "d")
            tree.made(b"d", tree.ensure(b""), b"d")
            os.rmdir(tmp_path / "d")
            tree.begin()
        assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(os.listdir("/proc/self/fd")) == before
