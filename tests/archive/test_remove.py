"""A tree is removed and nothing else, whatever it holds and whoever moves it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit.archive.remove import remove_tree


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_remove_tree_follows_nothing(tmp_path: Path, fd: int) -> None:
    (tmp_path / "keep/sub").mkdir(parents=True)
    (tmp_path / "keep/f").touch()
    (tmp_path / "gone/sub").mkdir(parents=True)
    (tmp_path / "gone/link").symlink_to(tmp_path / "keep")
    (tmp_path / "gone/sub/link").symlink_to("../../keep")
    os.mkfifo(tmp_path / "gone/sub/fifo")
    remove_tree(fd, b"gone")
    (tmp_path / "link").symlink_to("keep")
    remove_tree(fd, b"link")
    assert sorted(os.listdir(tmp_path)) == ["keep"]
    assert sorted(os.listdir(tmp_path / "keep")) == ["f", "sub"]


def test_remove_tree_of_any_depth(tmp_path: Path, fd: int) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):  # deeper than any path can say
        os.mkdir("d", dir_fd=here)
        os.mkdir("e", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    remove_tree(fd, b"d")
    assert os.listdir(tmp_path) == ["e"]


@pytest.mark.lane("root")
def test_remove_tree_does_not_enter_mounts(tmp_path: Path, fd: int) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").touch()
    (tmp_path / "d/mount").mkdir(parents=True)
    subprocess.run(["mount", "--bind", tmp_path / "other", tmp_path / "d/mount"], check=True)
    try:
        with pytest.raises(OSError, match="cross-device"):
            remove_tree(fd, b"d")
    finally:
        subprocess.run(["umount", tmp_path / "d/mount"], check=True)
    assert (tmp_path / "other/precious").exists()


def test_remove_tree_gives_up_where_directories_are_moved(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody moves a directory away while its content is removed: the way back leads elsewhere."""
    (tmp_path / "d/sub/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/precious").touch()
    plain_rmdir = os.rmdir

    def rmdir(name: bytes, *, dir_fd: int) -> None:
        if name == b"deep":
            os.rename(tmp_path / "d/sub", tmp_path / "elsewhere/sub")
        plain_rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(OSError, match="moved while it was removed"):
        remove_tree(fd, b"d")
    assert (tmp_path / "elsewhere/deep/precious").exists()
