"""Taking layers out: whatever is in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from layerlimit import Driver
from layerlimit.driver.removal import delete_tree
from tests.driver import goroot

pytestmark = pytest.mark.lane("root", "overlay")


def dig(directory: Path, depth: int) -> None:
    """Directories below each other, deeper than a path can say."""
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir("deeper", dir_fd=here)
            below = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)


def test_a_tree_deeper_than_any_path(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "beside" / "empty").mkdir(parents=True)
    dig(tree, 5000)
    delete_tree(tree)
    assert os.listdir(tmp_path) == []


def test_files_of_every_kind(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tmp_path / "outside").write_text("stays")
    (tree / "link").symlink_to(tmp_path)
    (tree / "below" / "link").symlink_to("../../outside")
    os.mkfifo(tree / "below" / "fifo")
    os.mknod(tree / "below" / "null", 0o20666, os.makedev(1, 3))
    os.mknod(tree / "whiteout", 0o20000, 0)
    (tree / b"\xff\xfe\n".decode(errors="surrogateescape")).write_text("x")
    delete_tree(tree)
    assert os.listdir(tmp_path) == ["outside"]
    assert (tmp_path / "outside").read_text() == "stays"


def test_a_file_a_link_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "file").touch()
    for name in ("link", "file", "none"):
        delete_tree(tmp_path / name)
    assert os.listdir(tmp_path) == ["directory"]


@pytest.mark.parametrize("flag", ["i", "a"])
def test_what_is_immutable(tmp_path: Path, flag: str) -> None:
    tree = tmp_path / "tree"
    (tree / "one" / "two").mkdir(parents=True)
    (tree / "one" / "two" / "file").touch()
    (tree / "file").touch()
    goroot.run("chattr", "-R", f"+{flag}", tree / "one", tree / "file")
    delete_tree(tree)
    assert os.listdir(tmp_path) == []


def test_what_is_mounted_in_it_stays(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "one" / "point").mkdir(parents=True)
    goroot.run("mount", "-t", "tmpfs", "tmpfs", tree / "one" / "point")
    try:
        (tree / "one" / "point" / "file").touch()
        with pytest.raises(OSError, match="busy"):
            delete_tree(tree)
        mounts = subprocess.run(["findmnt", "-rno", "TARGET"], check=True, capture_output=True, text=True)
        (point,) = [line for line in mounts.stdout.splitlines() if line.startswith(str(tree))]
        assert os.listdir(point) == ["file"]
    finally:
        goroot.run("umount", point)
    delete_tree(tree)
    assert os.listdir(tmp_path) == []


def test_a_layer_with_a_deep_tree_is_removed(driver: Driver) -> None:
    driver.create("base")
    driver.create("deep", "base")
    dig(driver.get("deep"), 3000)
    driver.put("deep")
    driver.remove("deep")
    assert os.listdir(driver.root / "trash") == []
    Driver(driver.root)
