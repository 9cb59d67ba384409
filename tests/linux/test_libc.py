"""How system call errors look."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from layerlimit.linux.libc import check, os_error, path_bytes, syscall

NR_CLOSE = {"x86_64": 3, "aarch64": 57}.get(os.uname().machine, 57)


def test_the_error_has_errno_class_call_and_path() -> None:
    error = os_error(errno.ENOENT, "umount2", Path("/x"))
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.strerror, error.filename) == (
        errno.ENOENT,
        "umount2: No such file or directory",
        "/x",
    )
    assert str(os_error(errno.EBUSY, "close", detail="said so")).endswith(
        "close: Device or resource busy: said so"
    )


def test_check_takes_errno_of_this_thread() -> None:
    ctypes.set_errno(errno.EXDEV)
    with pytest.raises(OSError, match="rename: Invalid cross-device link"):
        check(-1, "rename")
    assert check(7, "open") == 7


def test_syscall_by_number() -> None:
    with pytest.raises(OSError, match="close: Bad file descriptor"):
        check(syscall(NR_CLOSE, -1), "close")


def test_paths_are_bytes_without_nul() -> None:
    assert path_bytes(Path("/a")) == b"/a"
    assert path_bytes(os.fsdecode(b"/\xff")) == b"/\xff"
    with pytest.raises(ValueError, match="null byte"):
        path_bytes("/a\0b")
