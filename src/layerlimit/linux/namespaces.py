"""Namespaces: leaving the caller's, and making another directory the root of a mount namespace.

Facts: unshare(2), pivot_root(2), move_mount(2), sethostname(2). Every error is an :class:`OSError`.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from layerlimit.linux.libc import check, libc, path_bytes, syscall
from layerlimit.linux.mount import MNT_DETACH, unmount

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

HOST_NAME_MAX: Final = 64  # bytes; __NEW_UTS_LEN

_NR_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_NR_MOVE_MOUNT: Final = 429
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40

libc.unshare.argtypes = (ctypes.c_int,)
libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)


def unshare(flags: int) -> None:
    """unshare(2) of CLONE_* namespaces; CLONE_NEWPID takes effect for children made from now on."""
    check(libc.unshare(flags), "unshare")


def move_mount(mount: int, target: int) -> None:
    """Attach the mount whose root ``mount`` is a descriptor of, detached or not, to what ``target`` has open.

    Both are descriptors, so no name is resolved that somebody could exchange meanwhile.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    check(syscall(_NR_MOVE_MOUNT, mount, b"", target, b"", flags), "move_mount")


def enter_root(root: int) -> None:
    """Make the mount whose root ``root`` is a descriptor of the root of this mount namespace.

    What was the root until now is detached with everything mounted in it: no name in the namespace leads
    there any more. The mount must be attached somewhere in this namespace (pivot_root(2), "pivot_root(".",
    ".")"). The working directory is the new root afterwards.
    """
    os.fchdir(root)
    check(syscall(_NR_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    unmount(".", flags=MNT_DETACH)
    os.chdir("/")


def set_hostname(name: str) -> None:
    """sethostname(2) for this UTS namespace; longer than :data:`HOST_NAME_MAX` bytes is ``EINVAL``."""
    raw = path_bytes(name)
    check(libc.sethostname(raw, len(raw)), "sethostname", name)
