"""Limited layers that are mounted when the machine stops; each later boot mounts them again, with limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.machine import Machine, make_disk
from tests.vm.reboots import GROWN, LIMITS
from tests.vm.workload import MIB

pytestmark = [pytest.mark.lane("vm"), pytest.mark.timeout(1800)]


def test_mounts_come_back_with_their_limits_after_a_reboot(tmp_path: Path) -> None:
    with Machine(tmp_path, disks=[make_disk(tmp_path / "disk", size=1 << 30)]) as machine:
        for end in (machine.shutdown, machine.kill, machine.kill):
            machine.boot()
            machine.run("mount", "/dev/vda", "/mnt")
            done = guest.run(machine, sys.executable, "-m", "tests.vm.reboots", "/mnt/store", timeout=600)
            assert done.returncode == 0, done.stderr.decode()
            report = json.loads(done.stdout)
            assert (report["mounted"], report["holds"]) == ([], dict.fromkeys(LIMITS, 0))
            for name, layer in report["layers"].items():
                limit = GROWN if name == "grown" else LIMITS[name]
                # What a file of its own costs below, what ext4 keeps back until the next mount above.
                assert limit - MIB <= layer["fitted"] <= limit * 1.03
                assert (layer["limit"], layer["own"], layer["parent"]) == (limit, name, "kept")
                assert layer["holds"] == (name != "engines")
            assert (report["mounted after umount"], report["check"]) == (False, [])
            if end == machine.kill:
                machine.run("sync")  # what unsynced writes become is tests/vm/test_power_cut.py's
            end()
