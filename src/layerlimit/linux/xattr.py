"""Extended attributes in bytes, of open files and of names that are never followed.

A target is a descriptor or a path. A descriptor opened with O_PATH, or a name in a directory that is
open, is reached through ``/proc/self/fd``: :func:`entry_path` names an entry of an open directory
whatever has been renamed above it, and its last component is not followed.
"""

from __future__ import annotations

import errno
import os

from layerlimit.linux.libc import os_error

#: What the kernel answers where a file system, or a kind of file, has no such attributes.
ABSENT = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


def entry_path(directory: int, name: bytes) -> bytes:
    """A path for the entry ``name`` (one component) of the open directory ``directory``."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def handle_path(fd: int) -> bytes:
    """A path for the file behind ``fd``, O_PATH or not: pass it with ``follow=True``."""
    return b"/proc/self/fd/%d" % fd


def get_xattr(target: int | bytes, name: bytes, *, follow: bool = False) -> bytes:
    """The value of an attribute; ENODATA when it is not set."""
    try:
        return os.getxattr(target, name, follow_symlinks=follow or isinstance(target, int))
    except OSError as error:
        raise _named(error, "getxattr", target, name) from None


def find_xattr(target: int | bytes, name: bytes, *, follow: bool = False) -> bytes | None:
    """The value of an attribute, or None where it is not set or cannot be."""
    try:
        return os.getxattr(target, name, follow_symlinks=follow or isinstance(target, int))
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise _named(error, "getxattr", target, name) from None


def set_xattr(target: int | bytes, name: bytes, value: bytes, *, follow: bool = False) -> None:
    """Set an attribute, whether it was set or not."""
    try:
        os.setxattr(target, name, value, 0, follow_symlinks=follow or isinstance(target, int))
    except OSError as error:
        raise _named(error, "setxattr", target, name) from None


def remove_xattr(target: int | bytes, name: bytes, *, follow: bool = False) -> None:
    """Remove an attribute; ENODATA when it is not set."""
    try:
        os.removexattr(target, name, follow_symlinks=follow or isinstance(target, int))
    except OSError as error:
        raise _named(error, "removexattr", target, name) from None


def list_xattrs(target: int | bytes, *, follow: bool = False) -> list[bytes]:
    """Names of all attributes the caller may see, in the kernel's order; empty where there can be none."""
    try:
        names = os.listxattr(target, follow_symlinks=follow or isinstance(target, int))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise _named(error, "listxattr", target, b"") from None
    return [os.fsencode(name) for name in names]


def _named(error: OSError, call: str, target: int | bytes, name: bytes) -> OSError:
    what = f"{call} {os.fsdecode(name)}" if name else call
    return os_error(error.errno or 0, what, target if isinstance(target, bytes) else handle_path(target))
