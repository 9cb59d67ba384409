"""Which containerd is installed."""

from __future__ import annotations

import re
import subprocess
from typing import Final

_VERSION: Final = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")


def containerd_version(program: str = "containerd") -> tuple[int, int] | None:
    """``(1, 6)`` and the like, as the program says; None when there is none or it does not say."""
    try:
        done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(done.stdout)


def parse_version(text: str) -> tuple[int, int] | None:
    """The version in what ``containerd --version`` prints."""
    found = _VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else None
