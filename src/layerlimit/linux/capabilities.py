"""Capabilities of this process: reading them, and giving them up for good.

A set of capabilities is an ``int`` used as bit mask, bit ``CAP_X`` standing for capability X, as in
/proc/<pid>/status. Facts: capabilities(7), include/uapi/linux/capability.h.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Final, NamedTuple

from layerlimit.linux.libc import check, libc
from layerlimit.linux.process import prctl

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_RAW: Final = 13
CAP_SYS_CHROOT: Final = 18
CAP_SYS_ADMIN: Final = 21
CAP_MKNOD: Final = 27
CAP_AUDIT_WRITE: Final = 29
CAP_SETFCAP: Final = 31

_VERSION_3: Final = 0x20080522
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


class Sets(NamedTuple):
    """The three sets of a thread that capget(2) tells."""

    effective: int
    permitted: int
    inheritable: int


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_Words = _Data * 2

libc.capget.argtypes = (ctypes.POINTER(_Header), ctypes.POINTER(_Data))
libc.capset.argtypes = (ctypes.POINTER(_Header), ctypes.POINTER(_Data))


def mask(*capabilities: int) -> int:
    """The set of these capabilities."""
    return sum(1 << capability for capability in set(capabilities))


def read() -> Sets:
    """The sets of the calling thread."""
    words = _Words()
    check(libc.capget(_Header(_VERSION_3, 0), words), "capget")
    low, high = words[0], words[1]
    return Sets(
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def bounding() -> int:
    """The bounding set of the calling thread."""
    found = 0
    for capability in range(64):
        try:
            found |= prctl(_PR_CAPBSET_READ, capability) << capability
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # one more than this kernel knows
    return found


def restrict(allowed: int) -> None:
    """Keep no capability outside ``allowed``, now or after any execve; what is not held is not gained.

    Bounding, permitted and effective sets become their intersection with ``allowed``; inheritable and
    ambient sets become empty. Applies to the calling thread and what it starts; there is no way back. Needs
    CAP_SETPCAP.
    """
    surplus = bounding() & ~allowed
    for capability in range(surplus.bit_length()):
        if surplus >> capability & 1:
            prctl(_PR_CAPBSET_DROP, capability)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    kept = read().permitted & allowed
    words = _Words(
        _Data(kept & 0xFFFFFFFF, kept & 0xFFFFFFFF, 0),
        _Data(kept >> 32, kept >> 32, 0),
    )
    check(libc.capset(_Header(_VERSION_3, 0), words), "capset")
