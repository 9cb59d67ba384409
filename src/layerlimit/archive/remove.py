"""Removing a tree that somebody may be changing meanwhile."""

from __future__ import annotations

import errno
import os

from layerlimit.linux import xattr
from layerlimit.linux.libc import os_error
from layerlimit.linux.openat2 import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_CHILD = _OPEN_DIRECTORY | os.O_NOFOLLOW
_WITHIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV


def remove_tree(parent: int, name: bytes) -> None:
    """Remove ``name`` from the open directory ``parent``, with everything below, following nothing.

    Depth costs neither stack nor descriptors: the way back is ``..``, checked to be where we came from. A
    mount below is not entered (EXDEV, EBUSY).
    """
    try:
        fd = openat2(parent, name, _OPEN_CHILD, resolve=_WITHIN)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
        return
    try:
        way: list[tuple[bytes, tuple[int, int]]] = []
        pending = [_unlink_all(fd)]
        while True:
            if pending[-1]:
                child = pending[-1].pop()
                status = os.fstat(fd)
                inner = openat2(fd, child, _OPEN_CHILD, resolve=_WITHIN)
                os.close(fd)
                fd = inner
                way.append((child, (status.st_dev, status.st_ino)))
                pending.append(_unlink_all(fd))
            elif way:
                pending.pop()
                child, identity = way.pop()
                outer = os.open(b"..", _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = outer
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) != identity:
                    raise os_error(errno.EXDEV, "moved while it was removed", name)
                os.rmdir(child, dir_fd=fd)
            else:
                break
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _unlink_all(fd: int) -> list[bytes]:
    """Unlink all entries of a directory but its directories, whose names are returned."""
    directories = []
    for name in os.listdir(xattr.handle_path(fd)):
        try:
            os.unlink(name, dir_fd=fd)
        except IsADirectoryError:
            directories.append(name)
    return directories
