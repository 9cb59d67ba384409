"""The filter's numbers against the kernel's headers, and its program judged call by call."""

from __future__ import annotations

import os
import re
import struct
import subprocess

import pytest

from layerlimit.linux.seccomp import CLONE, CLONE3, DENIED, IOCTL, SOCKET, UNSHARE, default_filter

HEADERS = {0: "asm/unistd_64.h", 1: "asm/unistd_32.h", 2: "asm-generic/unistd.h"}
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


@pytest.mark.parametrize("column", HEADERS)
def test_the_numbers_are_the_kernels(column: int) -> None:
    """As far as this machine has headers of the architecture; those of asm-generic are on every one."""
    switches = ["-D__BITS_PER_LONG=64", "-D__ARCH_WANT_NEW_STAT", "-D__ARCH_WANT_SYS_CLONE3"]
    done = subprocess.run(
        ["cpp", "-dM", *(switches if column == 2 else []), "-include", HEADERS[column], "/dev/null"],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 and column != 2 and os.uname().machine != "x86_64":
        return  # the headers of x86 are on x86 only
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\w+)", done.stdout))
    numbers = {}
    for name in ALL.keys() & defined.keys():
        text = defined[name]
        while not text.isdigit():  # one number may be named by another
            text = defined[text.split("_", 3)[-1]]
        numbers[name] = int(text)
    ours = {name: columns[column] for name, columns in ALL.items()}
    known = {name: number for name, number in ours.items() if name in numbers}
    assert len(known) > 40
    assert known == {name: numbers[name] for name in known}
    missing = {name for name in ours if name not in numbers and ours[name] is not None}
    assert missing <= {"open_tree_attr", "quotactl_fd"}  # younger than the headers of some distribution


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
