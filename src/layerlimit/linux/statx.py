"""statx(2): the facts about a file that :func:`os.stat` does not give, above all "is this a mount?".

One call of about a microsecond, where reading mountinfo takes milliseconds once thousands of mounts exist.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from typing import Final

from layerlimit.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    check,
    libc,
    path_bytes,
)

AnyPath = str | bytes | os.PathLike[str]

_STATX_BASIC_STATS: Final = 0x7FF
_STATX_MNT_ID: Final = 0x1000
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000


class _Timestamp(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("pad", ctypes.c_int32))


class _Statx(ctypes.Structure):
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("pad0", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", _Timestamp),
        ("btime", _Timestamp),
        ("ctime", _Timestamp),
        ("mtime", _Timestamp),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("mnt_id", ctypes.c_uint64),
        ("spare", ctypes.c_uint64 * 13),
    )


assert ctypes.sizeof(_Statx) == 256  # include/uapi/linux/stat.h: struct statx

libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.POINTER(_Statx),
)


@dataclass(frozen=True, slots=True)
class Statx:
    """What :func:`statx` found.

    ``mount_root`` says whether the file is the root of a mount (of a bind mount too); ``mount_id`` is the
    number in mountinfo's first column.
    """

    mode: int
    ino: int
    dev_major: int
    dev_minor: int
    mount_id: int
    mount_root: bool

    @property
    def device(self) -> int:
        """The device number, comparable with ``os.stat(...).st_dev``."""
        return os.makedev(self.dev_major, self.dev_minor)


def statx(path: AnyPath | int) -> Statx:
    """Look at ``path`` or an open descriptor; a last symbolic link is not followed, nothing automounted."""
    buffer = _Statx()
    check(_call(path, _STATX_BASIC_STATS | _STATX_MNT_ID, buffer), "statx", _named(path))
    return Statx(
        mode=buffer.mode,
        ino=buffer.ino,
        dev_major=buffer.dev_major,
        dev_minor=buffer.dev_minor,
        mount_id=buffer.mnt_id,
        mount_root=bool(buffer.attributes & _STATX_ATTR_MOUNT_ROOT),
    )


def is_mount_point(path: AnyPath | int) -> bool:
    """Whether something is mounted exactly at ``path``; False where ``path`` is missing.

    Other errors are raised: a path that cannot be looked at is not "not mounted".
    """
    buffer = _Statx()
    result = _call(path, 0, buffer)  # the attributes come unasked
    if result < 0 and ctypes.get_errno() == errno.ENOENT:
        return False
    check(result, "statx", _named(path))
    return bool(buffer.attributes & _STATX_ATTR_MOUNT_ROOT)


def _call(path: AnyPath | int, mask: int, buffer: _Statx) -> int:
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT
    if isinstance(path, int):
        result: int = libc.statx(path, b"", flags | AT_EMPTY_PATH, mask, ctypes.byref(buffer))
    else:
        result = libc.statx(AT_FDCWD, path_bytes(path), flags, mask, ctypes.byref(buffer))
    return result


def _named(path: AnyPath | int) -> AnyPath | None:
    return None if isinstance(path, int) else path
