"""The filter's numbers against the kernel's headers, and its program judged call by call."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux.seccomp import CLONE, CLONE3, DENIED, IOCTL, SOCKET, UNSHARE, default_filter

HEADERS = {0: "*/asm/unistd_64.h", 1: "*/asm/unistd_32.h", 2: "asm-generic/unistd.h"}
ARCHITECTURE = {0: 0xC000003E, 1: 0x40000003, 2: 0xC00000B7}
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
ALL = {**DENIED, "clone": CLONE, "clone3": CLONE3, "unshare": UNSHARE, "ioctl": IOCTL, "socket": SOCKET}


def judge(column: int, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter says: an interpreter of the few classic BPF instructions that it is made of."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    arch = ARCHITECTURE[column] if architecture is None else architecture
    data = struct.pack("=iIQ6Q", number, arch, 0, *padded)
    program = list(struct.iter_unpack("=HBBI", default_filter()))
    at = value = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("=I", data, operand)
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if value == operand else if_false
            case 0x35:
                at += if_true if value >= operand else if_false
            case 0x45:
                at += if_true if value & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"instruction {code:#x}")


@pytest.mark.lane("strace")
def test_the_numbers_are_this_machines(tmp_path: Path) -> None:
    """strace names every call by the kernel's table; the filter keeps them all from happening."""
    column = {"x86_64": 0, "aarch64": 2}[os.uname().machine]
    numbers = {name: nr for name, columns in DENIED.items() if (nr := columns[column]) is not None}
    program = (
        "import sys; from layerlimit.linux import process, seccomp; "
        "from layerlimit.linux.libc import syscall; "
        "process.forbid_new_privileges(); process.filter_syscalls(seccomp.default_filter()); "
        "[syscall(int(number), -1, -1, -1, -1, -1, -1) for number in sys.argv[1:]]"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-o", str(trace), sys.executable, "-c", program, *map(str, numbers.values())]
    subprocess.run(command, check=True)
    filtered = trace.read_text().partition("PR_SET_SECCOMP")[2].splitlines()[1:]
    names = [line.partition("(")[0] for line in filtered if "= -1 EPERM" in line]
    unknown = {f"syscall_{number:#x}": name for name, number in numbers.items()}  # to an older strace
    assert [unknown.get(name, name) for name in names] == list(numbers)


def test_the_numbers_are_those_of_the_headers() -> None:
    """Those of linux-libc-dev, as far as this machine has them: the other architectures' too."""
    for column, name in HEADERS.items():
        for path in Path("/usr/include").glob(name):
            found = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", path.read_text())
            # Where all architectures are described at once, these are for 32 bits only.
            only_32_bits = {"clock_adjtime64", "clock_settime64"} if column == 2 else set()
            numbers = {call: int(number) for call, number in found if call not in only_32_bits}
            ours = {call: columns[column] for call, columns in ALL.items() if call in numbers}
            assert len(ours) > 40
            assert ours == {call: numbers[call] for call in ours}


@pytest.mark.parametrize("column", HEADERS)
def test_what_is_denied(column: int) -> None:
    for name, numbers in DENIED.items():
        if (number := numbers[column]) is not None:
            assert judge(column, number) == EPERM, name
    assert judge(column, CLONE3[column]) == ENOSYS


@pytest.mark.parametrize("column", HEADERS)
def test_what_goes_by_an_argument(column: int) -> None:
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(column, CLONE[column], flag | 17) == EPERM
        assert judge(column, UNSHARE[column], flag) == EPERM
    assert judge(column, CLONE[column], 0x1200011) == ALLOW  # fork
    assert judge(column, CLONE[column], 0x3D0F00) == ALLOW  # a thread
    assert judge(column, UNSHARE[column], 0x80) == EPERM  # a time namespace
    assert judge(column, UNSHARE[column], 0x600) == ALLOW  # files and working directory
    for request in (0x5412, 0x541C, 0x1_0000_5412, 0xFFFF_FFFF_0000_541C):
        assert judge(column, IOCTL[column], 0, request) == EPERM
    assert judge(column, IOCTL[column], 0x5412, 0x5413) == ALLOW
    assert judge(column, SOCKET[column], 40) == EPERM
    assert judge(column, SOCKET[column], 2, 40) == ALLOW


@pytest.mark.parametrize("column", HEADERS)
def test_everything_else_is_allowed(column: int) -> None:
    judged = {numbers[column] for numbers in ALL.values()}
    assert {judge(column, number) for number in range(470) if number not in judged} == {ALLOW}


def test_another_architecture_is_killed_and_x32_is_not_there() -> None:
    assert judge(0, 1, architecture=0x40000028) == KILL  # arm
    assert judge(0, 0x40000000 | 39) == ENOSYS
