"""Capabilities are given up for good; tried in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux import capabilities
from layerlimit.linux.capabilities import CAP_CHOWN, CAP_MKNOD, CAP_NET_RAW, CAP_SETPCAP, mask

pytestmark = pytest.mark.lane("root")

FIELDS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status(text: str) -> dict[str, int]:
    return {field: int(re.findall(rf"{field}:\t(\w+)", text)[0], 16) for field in FIELDS}


def test_the_sets_are_those_of_proc() -> None:
    shown = status(Path("/proc/self/status").read_text())
    sets = capabilities.read()
    assert (sets.effective, sets.permitted, sets.inheritable) == (
        shown["CapEff"],
        shown["CapPrm"],
        shown["CapInh"],
    )
    assert capabilities.bounding() == shown["CapBnd"]


def test_what_is_not_allowed_is_gone_also_after_execve() -> None:
    kept = mask(CAP_CHOWN, CAP_NET_RAW, CAP_SETPCAP)
    program = (
        "import os; from layerlimit.linux import capabilities; "
        f"capabilities.restrict({kept}); print(open('/proc/self/status').read(), flush=True); "
        "os.execvp('cat', ['cat', '/proc/self/status'])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    before, after = done.stdout.split("\n\n")
    expected = {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0}
    assert status(before) == expected
    assert status(after) == expected


def test_restricting_adds_nothing() -> None:
    program = (
        "from layerlimit.linux import capabilities as c; "
        "c.restrict(c.mask(c.CAP_CHOWN, c.CAP_SETPCAP)); c.restrict(c.mask(c.CAP_CHOWN, c.CAP_MKNOD)); "
        "print(c.read().permitted, c.bounding())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1"]


def test_a_mask_counts_each_once() -> None:
    assert mask(CAP_CHOWN, CAP_CHOWN, CAP_MKNOD) == 1 | 1 << 27
