"""A seccomp filter in the spirit of Docker's default profile: what no command in a root needs.

The list is what moby's profiles/seccomp/default.json leaves out for a container without CAP_SYS_ADMIN, cut
to the calls that reach beyond the container: mounting, namespaces, devices and modules, quotas, keys,
clocks, and the large attack surfaces (bpf, perf, io_uring, userfaultfd). They answer EPERM as they do
there, and clone3 answers ENOSYS, since a filter cannot read its flags and every C library then falls back
to clone.

Numbers come from arch/x86/entry/syscalls and include/uapi/asm-generic/unistd.h; from 424 on they are the same
everywhere. A process of another architecture than these is killed: its numbers would mean other calls.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final

# name: (x86_64, i386, aarch64)
DENIED: Final[dict[str, tuple[int | None, int | None, int | None]]] = {
    "acct": (163, 51, 89),
    "add_key": (248, 286, 217),
    "bpf": (321, 357, 280),
    "clock_adjtime": (305, 343, 266),
    "clock_adjtime64": (None, 405, None),
    "clock_settime": (227, 264, 112),
    "clock_settime64": (None, 404, None),
    "create_module": (174, 127, None),
    "delete_module": (176, 129, 106),
    "fanotify_init": (300, 338, 262),
    "finit_module": (313, 350, 273),
    "fsconfig": (431, 431, 431),
    "fsmount": (432, 432, 432),
    "fsopen": (430, 430, 430),
    "fspick": (433, 433, 433),
    "init_module": (175, 128, 105),
    "io_uring_enter": (426, 426, 426),
    "io_uring_register": (427, 427, 427),
    "io_uring_setup": (425, 425, 425),
    "ioperm": (173, 101, None),
    "iopl": (172, 110, None),
    "kcmp": (312, 349, 272),
    "kexec_file_load": (320, None, 294),
    "kexec_load": (246, 283, 104),
    "keyctl": (250, 288, 219),
    "lookup_dcookie": (212, 253, 18),
    "mount": (165, 21, 40),
    "mount_setattr": (442, 442, 442),
    "move_mount": (429, 429, 429),
    "nfsservctl": (180, 169, 42),
    "open_by_handle_at": (304, 342, 265),
    "open_tree": (428, 428, 428),
    "open_tree_attr": (467, 467, 467),
    "perf_event_open": (298, 336, 241),
    "pivot_root": (155, 217, 41),
    "quotactl": (179, 131, 60),
    "quotactl_fd": (443, 443, 443),
    "reboot": (169, 88, 142),
    "request_key": (249, 287, 218),
    "setns": (308, 346, 268),
    "settimeofday": (164, 79, 170),
    "stime": (None, 25, None),
    "swapoff": (168, 115, 225),
    "swapon": (167, 87, 224),
    "sysfs": (139, 135, None),
    "syslog": (103, 103, 116),
    "umount": (None, 22, None),
    "umount2": (166, 52, 39),
    "uselib": (134, 86, None),
    "userfaultfd": (323, 374, 282),
    "vm86": (None, 166, None),
    "vm86old": (None, 113, None),
}

# Calls that are denied by one of their arguments; all columns as above.
CLONE: Final = (56, 120, 220)
CLONE3: Final = (435, 435, 435)
UNSHARE: Final = (272, 310, 97)
IOCTL: Final = (16, 54, 29)
SOCKET: Final = (41, 359, 198)

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; and for unshare also NEWTIME, which is
# part of the exit signal for clone.
_CLONE_NEW: Final = 0x7E020000
_UNSHARE_NEW: Final = _CLONE_NEW | 0x80
# Both put text into the terminal that the caller types in (CVE-2017-5226).
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_AF_VSOCK: Final = 40  # speaks to the hypervisor, whatever the network namespace

_ARCHITECTURES: Final = (0xC000003E, 0x40000003, 0xC00000B7)  # AUDIT_ARCH_X86_64, _I386, _AARCH64
_X32_BIT: Final = 0x40000000

_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data; the low half of an argument comes first

_LOAD, _JUMP, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_EPERM: Final = _ERRNO | errno.EPERM
_ENOSYS: Final = _ERRNO | errno.ENOSYS


def default_filter() -> bytes:
    """The program for :func:`layerlimit.linux.process.filter_syscalls`, good for all three architectures."""
    program = [_instruction(_LOAD, _ARCH)]
    for column, architecture in enumerate(_ARCHITECTURES):
        section = list(_section(column))
        program += [_instruction(_JEQ, architecture, 1, 0), _instruction(_JUMP, len(section)), *section]
    program.append(_instruction(_RETURN, _KILL_PROCESS))
    return b"".join(program)


def _section(column: int) -> Iterator[bytes]:
    yield _instruction(_LOAD, _NR)
    if column == 0:  # x32 has numbers of its own, and nothing today is built for it
        yield from _verdict(_JGE, _X32_BIT, _ENOSYS)
    yield from _verdict(_JEQ, CLONE3[column], _ENOSYS)
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            yield from _verdict(_JEQ, number, _EPERM)
    yield from _if_call(CLONE[column], 0, _verdict(_JSET, _CLONE_NEW, _EPERM))
    yield from _if_call(UNSHARE[column], 0, _verdict(_JSET, _UNSHARE_NEW, _EPERM))
    tty = [*_verdict(_JEQ, _TIOCSTI, _EPERM), *_verdict(_JEQ, _TIOCLINUX, _EPERM)]
    yield from _if_call(IOCTL[column], 1, tty)  # the kernel takes 32 bits of it too (CVE-2019-10063)
    yield from _if_call(SOCKET[column], 0, _verdict(_JEQ, _AF_VSOCK, _EPERM))
    yield _instruction(_RETURN, _ALLOW)


def _if_call(number: int, argument: int, body: list[bytes]) -> Iterator[bytes]:
    """Judge call ``number`` by ``body``, which sees the low half of ``argument``; the rest is allowed."""
    yield _instruction(_JEQ, number, 0, len(body) + 2)
    yield _instruction(_LOAD, _ARGS + 8 * argument)
    yield from body
    yield _instruction(_RETURN, _ALLOW)


def _verdict(comparison: int, value: int, verdict: int) -> list[bytes]:
    return [_instruction(comparison, value, 0, 1), _instruction(_RETURN, verdict)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)  # struct sock_filter
