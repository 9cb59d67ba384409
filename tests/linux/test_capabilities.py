"""Capabilities: read as the kernel tells them, and given up for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux import capabilities


def status(name: str) -> int:
    """A set of this thread as /proc tells it."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith(f"{name}:"))


def test_the_sets_are_what_proc_says() -> None:
    found = capabilities.read()
    assert found == (status("CapEff"), status("CapPrm"), status("CapInh"))
    assert capabilities.bounding() == status("CapBnd")


def test_a_mask_has_one_bit_for_each() -> None:
    assert capabilities.mask() == 0
    assert (
        capabilities.mask(capabilities.CAP_CHOWN, capabilities.CAP_SYS_ADMIN, 40, 40) == 1 | 1 << 21 | 1 << 40
    )


RESTRICTED = """
import os, subprocess, sys
from pathlib import Path
from layerlimit.linux import capabilities as c
before = c.read()
c.restrict(c.mask(c.CAP_CHOWN, c.CAP_KILL, 62))
print(c.read().effective, c.read().permitted, c.read().inheritable, c.bounding())
status = Path("/proc/self/status").read_text().splitlines()
print(*[line for line in status if line.startswith("CapAmb")])
try:
    os.mknod(sys.argv[1], 0o20600, os.makedev(1, 3))
except PermissionError:
    print("no mknod")
child = "from layerlimit.linux import capabilities as c; print(c.read().permitted)"
sys.stdout.flush()
subprocess.run([sys.executable, "-c", child], check=True)
"""


@pytest.mark.lane("root")
def test_what_is_given_up_is_gone_for_children_too(tmp_path: Path) -> None:
    script = [sys.executable, "-c", RESTRICTED, str(tmp_path / "node")]
    done = subprocess.run(script, check=True, text=True, capture_output=True)
    kept = capabilities.mask(capabilities.CAP_CHOWN, capabilities.CAP_KILL)
    assert done.stdout.splitlines() == [
        f"{kept} {kept} 0 {kept}",
        "CapAmb:\t0000000000000000",
        "no mknod",
        str(kept),
    ]
    assert not (tmp_path / "node").exists()
