"""What tests run inside containers, and how they read the answers."""

from __future__ import annotations

import re

MIB = 1 << 20

# Writes until nothing more fits, or 256 MiB, and says how much did; the shell goes on where dd fails.
FILL = "dd if=/dev/zero of=/filled bs=65536 count=4096; stat -c 'filled %s' /filled"
FREE = "df -k / | sed 1d"


def write(megabytes: int, name: str = "/written") -> str:
    return f"dd if=/dev/zero of={name} bs=1048576 count={megabytes}"


def filled(output: str) -> int:
    """How many bytes FILL could write."""
    return int(output.rpartition("filled ")[2].split()[0])


def available(output: str) -> int:
    """The bytes that FREE says are available, anywhere in an output."""
    found = re.search(r"^\S+ +\d+ +\d+ +(\d+) +\d+% /", output, re.MULTILINE)
    assert found, output
    return int(found[1]) * 1024


def is_limit(size: int, limit: int) -> bool:
    """Whether a fresh layer's available bytes are those of ``limit``: no fewer, at most 2 % more."""
    return limit <= size <= limit * 1.02
