"""Extended attributes of files, links and descriptors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit.linux.xattr import (
    entry_path,
    find_xattr,
    get_xattr,
    handle_path,
    list_xattrs,
    remove_xattr,
    set_xattr,
)

NAME = b"user.layerlimit"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("how", ["path", "descriptor", "entry", "handle"])
def test_a_value_goes_round(tmp_path: Path, directory: int, how: str) -> None:
    file = tmp_path / os.fsdecode(b"name \xff")
    file.touch()
    flags = os.O_PATH if how == "handle" else os.O_RDWR
    fd = os.open(file, flags)
    try:
        targets: dict[str, int | bytes] = {
            "path": os.fsencode(file),
            "descriptor": fd,
            "entry": entry_path(directory, b"name \xff"),
            "handle": handle_path(fd),
        }
        target = targets[how]
        follow = how == "handle"
        assert find_xattr(target, NAME, follow=follow) is None
        set_xattr(target, NAME, b"one\0two", follow=follow)
        set_xattr(target, NAME, b"", follow=follow)
        assert get_xattr(target, NAME, follow=follow) == b""
        set_xattr(target, NAME, b"\xff\0", follow=follow)
        assert find_xattr(target, NAME, follow=follow) == b"\xff\0"
        assert NAME in list_xattrs(target, follow=follow)
        remove_xattr(target, NAME, follow=follow)
        assert NAME not in list_xattrs(target, follow=follow)
    finally:
        os.close(fd)


@pytest.mark.lane("root")
def test_a_link_is_not_followed(tmp_path: Path, directory: int) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to("file")
    for target in (os.fsencode(link), entry_path(directory, b"link")):
        set_xattr(target, b"trusted.layerlimit", b"x")
        assert list_xattrs(target) == [b"trusted.layerlimit"]
        assert find_xattr(os.fsencode(file), b"trusted.layerlimit") is None
        assert find_xattr(target, b"trusted.layerlimit", follow=True) is None
        remove_xattr(target, b"trusted.layerlimit")


def test_errors_name_the_call_the_attribute_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    raw = os.fsencode(file)
    for attempt in (get_xattr, remove_xattr):
        with pytest.raises(OSError, match=r"(get|remove)xattr user\.layerlimit") as caught:
            attempt(raw, NAME)
        assert (caught.value.errno, caught.value.filename) == (errno.ENODATA, raw)
    missing = os.fsencode(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="getxattr"):
        find_xattr(missing, NAME)
    with pytest.raises(FileNotFoundError, match="listxattr"):
        list_xattrs(missing)


def test_where_there_are_no_attributes_there_are_none() -> None:
    assert find_xattr(b"/proc/self/status", NAME) is None
    assert list_xattrs(b"/proc/self/status") == []
    with pytest.raises(OSError, match=r"setxattr user\.layerlimit") as caught:
        set_xattr(b"/proc/self/status", NAME, b"")
    assert caught.value.errno == errno.EOPNOTSUPP
