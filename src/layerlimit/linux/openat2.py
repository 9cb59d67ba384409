"""openat2(2): open a path that the kernel keeps below a directory while it resolves it."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

from layerlimit.linux.libc import os_error

_NR_OPENAT2: Final = 437  # 5.6

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10


class _OpenHow(ctypes.Structure):  # include/uapi/linux/openat2.h
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SIZE: Final = ctypes.sizeof(_OpenHow)
# A handle of our own to the C library, since the types of a function's arguments are kept with the function:
# with them, and without making the structure anew, a call costs half. Layers are made of thousands of them.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_HOWS: dict[
    tuple[int, int, int], tuple[_OpenHow, int]
] = {}  # with their addresses; the kernel only reads them


def _how(flags: int, mode: int, resolve: int) -> int:
    """The address of the structure for these arguments; it lives as long as the process."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _HOWS.setdefault((flags, mode, resolve), (how, ctypes.addressof(how)))[1]


def openat2(directory: int, path: bytes, flags: int, *, resolve: int, mode: int = 0) -> int:
    """Open ``path`` relative to the descriptor ``directory``; the new descriptor is close-on-exec.

    ``resolve`` says how: with :data:`RESOLVE_IN_ROOT`, ``directory`` is what ``/`` means, so that absolute
    links and ``..`` stay inside, even while others rename directories. The kernel answers EAGAIN when such a
    rename makes it unsure; the call is then repeated a bounded number of times.
    """
    known = _HOWS.get((flags, mode, resolve))
    how = known[1] if known else _how(flags, mode, resolve)
    for _ in range(100):
        fd = int(_syscall(_NR_OPENAT2, directory, path, how, _SIZE))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code != errno.EAGAIN:
            break
    raise os_error(code, "openat2", path)
