"""The C library, loaded once: how every module of this floor reaches the kernel.

``check`` turns a C result into an :class:`OSError` that carries errno, the call's name and the path;
``syscall`` calls what the C library has no wrapper for. Numbers are those of the unified table (424 and
up are the same on every architecture) and are given by the callers.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

libc: Final = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

_syscall = libc.syscall
_syscall.restype = ctypes.c_long


def os_error(
    code: int, call: str, path: str | bytes | os.PathLike[str] | None = None, *, detail: str = ""
) -> OSError:
    """The :class:`OSError` for ``code`` out of ``call``: ``umount2: Device or resource busy: '/x'``.

    ``detail`` is the kernel's own message where it gave one. The class is the errno's (``FileNotFoundError``,
    ``PermissionError``, …), as everywhere in Python.
    """
    text = f"{call}: {os.strerror(code)}" + (f": {detail}" if detail else "")
    if path is None:
        return OSError(code, text)
    return OSError(code, text, os.fspath(path))


def check(result: int, call: str, path: str | bytes | os.PathLike[str] | None = None) -> int:
    """``result`` unless it is negative, else raise the error that errno holds."""
    if result < 0:
        raise os_error(ctypes.get_errno(), call, path)
    return result


def syscall(number: int, *arguments: Any) -> int:
    """Call system call ``number``; -1 and errno on failure, for :func:`check`.

    Python integers are passed as C longs, so that 64-bit values and negative descriptors both arrive whole;
    ``bytes``, ``None`` and ctypes objects are passed as ctypes does.
    """
    return int(
        _syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    )


def path_bytes(path: str | bytes | os.PathLike[str]) -> bytes:
    """``path`` as the kernel wants it; a NUL inside is refused rather than cutting the name."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"embedded null byte in path: {raw!r}")
    return raw


def trim_memory() -> None:
    """Give the kernel back what was freed (malloc_trim(3)); glibc keeps it, for each thread."""
    if hasattr(libc, "malloc_trim"):  # others have no such call
        libc.malloc_trim(0)
