"""What one process decides for itself: how it dies, what it may gain, which keys and calls it has.

Facts: prctl(2), keyctl(2), seccomp(2). Every error is an :class:`OSError`.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from layerlimit.linux.libc import check, libc, syscall

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2

_NR_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1

_INSTRUCTION: Final = 8  # bytes; struct sock_filter


class _Program(ctypes.Structure):  # struct sock_fprog
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def prctl(option: int, *arguments: int | ctypes.Structure) -> int:
    """prctl(2); integers are passed as unsigned long, what is not given is 0, structures by reference."""
    values = [
        ctypes.byref(given) if isinstance(given, ctypes.Structure) else ctypes.c_ulong(given)
        for given in (*arguments, *(0,) * (4 - len(arguments)))
    ]
    return check(libc.prctl(option, *values), f"prctl({option})")


def die_with_parent(signal: int) -> None:
    """Have ``signal`` sent to this process when the thread that made it ends.

    Not inherited by children, and forgotten when the process changes its user. The parent may have ended
    before the call: check for that after it.
    """
    prctl(_PR_SET_PDEATHSIG, signal)


def hide_memory() -> None:
    """Keep others of the same user from tracing this process and from what /proc/<pid> says of its files.

    Undone by execve(2).
    """
    prctl(_PR_SET_DUMPABLE, 0)


def set_title(title: bytes) -> None:
    """Show ``title`` as this process's name and command line; it is cut to what the old one took.

    The command line is overwritten where the kernel put it (proc_pid_stat(5): arg_start, arg_end).
    """
    libc.prctl(_PR_SET_NAME, title, 0, 0, 0)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    room = end - start
    if start and room > 0:
        ctypes.memmove(start, title[: room - 1].ljust(room, b"\0"), room)


def forbid_new_privileges() -> None:
    """no_new_privs: no execve(2) from now on grants anything, by set-user-ID, file capabilities or LSM."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def leave_session_keyring() -> None:
    """Take a new, empty session keyring in place of the caller's."""
    number = _NR_KEYCTL[os.uname().machine]
    check(syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl(join_session_keyring)")


def filter_syscalls(program: bytes) -> None:
    """Have every system call from now on judged by ``program``, an array of struct sock_filter.

    Needs no_new_privs or CAP_SYS_ADMIN. Inherited, kept over execve(2), never taken off.
    """
    loaded = _Program(len(program) // _INSTRUCTION, program)
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, loaded)
