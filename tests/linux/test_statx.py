"""statx and statfs: what a file is on, and whether it is a mount."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layerlimit.linux.mount import FsContext, bind, unmount
from layerlimit.linux.statfs import OVERLAY_MAGIC, TMPFS_MAGIC, statfs
from layerlimit.linux.statx import is_mount_point, statx


def test_statx_agrees_with_stat(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    expected = file.stat()
    for subject in (file, os.fsencode(file)):
        found = statx(subject)
        assert (found.mode, found.ino, found.device) == (
            expected.st_mode,
            expected.st_ino,
            expected.st_dev,
        )
        assert not found.mount_root
    with file.open() as opened:
        assert statx(opened.fileno()) == statx(file)


def test_a_last_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/")
    assert statx(link).ino == link.lstat().st_ino
    assert not is_mount_point(link)


def test_what_is_mounted_everywhere() -> None:
    assert is_mount_point("/")
    assert is_mount_point("/proc")
    assert not is_mount_point("/proc/self")


@pytest.mark.lane("root")
def test_a_bind_mount_on_the_same_file_system_is_a_mount_point(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    assert not is_mount_point(target)
    bind(source, target)
    try:
        assert is_mount_point(target)
        assert not is_mount_point(source)
        assert statx(target).ino == statx(source).ino  # os.path.ismount cannot tell it
        assert statx(target).mount_id != statx(source).mount_id
    finally:
        unmount(target)
    assert not is_mount_point(target)


def test_missing_is_not_mounted_but_unknown_is_an_error(tmp_path: Path) -> None:
    assert not is_mount_point(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        is_mount_point(tmp_path / "file" / "below")
    assert caught.value.filename == os.fspath(tmp_path / "file" / "below")
    with pytest.raises(OSError, match="statx") as bad:
        statx(1 << 30)
    assert bad.value.errno == errno.EBADF


def test_statfs_agrees_with_statvfs(tmp_path: Path) -> None:
    expected = os.statvfs(tmp_path)
    found = statfs(tmp_path)
    assert (found.bsize, found.frsize, found.blocks, found.files) == (
        expected.f_bsize,
        expected.f_frsize,
        expected.f_blocks,
        expected.f_files,
    )
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert statfs(fd).type == found.type
    finally:
        os.close(fd)


@pytest.mark.lane("root")
def test_statfs_of_a_file_system_of_known_size(tmp_path: Path) -> None:
    with FsContext("tmpfs") as context:
        context.set_string("size", "1m")
        context.set_string("nr_inodes", "64")
        context.set_flag("ro")
        context.create()
        with context.mount() as mounted:
            found = statfs(mounted.fd)
    assert (found.type, found.name) == (TMPFS_MAGIC, "tmpfs")
    assert found.blocks * found.frsize == found.bavail * found.frsize == 1 << 20
    assert (found.files, found.ffree) == (64, 63)
    assert found.read_only
    assert not statfs(tmp_path).read_only


def test_an_unknown_type_shows_its_number() -> None:
    found = statfs("/proc")
    assert found.type != OVERLAY_MAGIC
    assert found.name == "0x9fa0"  # PROC_SUPER_MAGIC


def test_statfs_names_the_call_and_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="statfs: No such file") as caught:
        statfs(tmp_path / "none")
    assert caught.value.filename == os.fspath(tmp_path / "none")
    with pytest.raises(OSError, match="fstatfs"):
        statfs(1 << 30)
