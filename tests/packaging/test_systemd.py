"""The unit's text; how it behaves under systemd is seen in the virtual machine (tests/vm/test_reboot.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "layerlimit.service"


@pytest.mark.lane("systemd_analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "layerlimit.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/layerlimit", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
