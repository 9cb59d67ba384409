"""The default filter: numbers that mean what they say, and calls that are refused."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux import seccomp

pytestmark = pytest.mark.lane("root")

HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/x86_64-linux-gnu/asm/unistd_32.h"),
    2: Path("/usr/include/asm-generic/unistd.h"),
}

INSIDE = """
import ctypes, os, socket, sys
from layerlimit.linux.libc import syscall
from layerlimit.linux.process import filter_syscalls, forbid_new_privileges
from layerlimit.linux.seccomp import default_filter
forbid_new_privileges()
filter_syscalls(default_filter())
def call(*arguments):
    ctypes.set_errno(0)
    return ctypes.get_errno() if syscall(*arguments) < 0 else 0
"""


def inside(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", INSIDE + script], check=False, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("column", HEADERS)
def test_the_numbers_are_those_of_the_headers(column: int) -> None:
    """A Debian of one architecture has headers of two or three of the tables; they must agree."""
    header = HEADERS[column]
    text = header.read_text() if header.exists() else ""
    known = {
        name: int(number) for name, number in re.findall(r"define __NR(?:3264)?_(\\w+)\\s+(\\d+)\\b", text)
    }
    checked = {**seccomp.DENIED, "clone": seccomp.CLONE, "clone3": seccomp.CLONE3, "unshare": seccomp.UNSHARE}
    checked |= {"ioctl": seccomp.IOCTL, "socket": seccomp.SOCKET}
    for name, numbers in checked.items():
        if name in known:
            assert numbers[column] == known[name], name


def test_every_jump_stays_in_the_program() -> None:
    program = seccomp.default_filter()
    instructions = list(struct.iter_unpack("=HBBI", program))
    assert len(instructions) < 4096  # BPF_MAXINSNS
    for index, (code, if_true, if_false, value) in enumerate(instructions):
        ahead = [value] if code == 0x05 else [if_true, if_false]
        assert index + 1 + max(ahead) <= len(instructions)
    assert instructions[-1] == (0x06, 0, 0, 0x80000000)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="uses the numbers of x86-64")
def test_calls_that_reach_out_are_refused_and_the_others_are_not() -> None:
    denied = sorted(numbers[0] for numbers in seccomp.DENIED.values() if numbers[0] is not None)
    shown = inside(f"print({{call(number, 0, 0, 0, 0, 0) for number in {denied}}})")
    assert shown == f"{{{errno.EPERM}}}"
    forked = "child = os.fork()\nif not child:\n    os._exit(7)\n"
    assert inside(forked + "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))") == "7"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="uses the numbers of x86-64")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((272, 0x10000000), errno.EPERM),  # unshare of a user namespace
        ((272, 0x80), errno.EPERM),  # of a time namespace
        ((272, 0x200), 0),  # of the working directory
        ((56, 0x10000000 | 17), errno.EPERM),  # clone with a user namespace
        ((435, 0, 0), errno.ENOSYS),  # clone3
        ((16, 0, 0x5412, 0), errno.EPERM),  # TIOCSTI
        ((16, 0, 0x5412 | 1 << 32, 0), errno.EPERM),  # TIOCSTI, as the kernel reads it
        ((16, 0, 0x541C, 0), errno.EPERM),  # TIOCLINUX
        ((41, 40, 1, 0), errno.EPERM),  # socket(AF_VSOCK)
        ((0x40000000 | 39,), errno.ENOSYS),  # getpid of x32
    ],
)
def test_calls_that_are_judged_by_an_argument(arguments: tuple[int, ...], code: int) -> None:
    assert inside(f"print(call(*{arguments}))") == str(code)
