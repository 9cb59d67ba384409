"""The power-cut show: a store at work on disks that lose what was not flushed, looked at after the cut.

One *round* is two boots. In the first, workloads run side by side, each on a store and a disk of its own,
until qemu is killed at a random moment with something to lose. **That cut is real**: the disk then keeps a
random subset of what no flush covers. The other cuts of a round are **replayed** from the same log at an
earlier position: right after an operation returned, when most is at stake, with nothing kept; or between
writes and their flush, with a subset of their own or nothing kept. The guest of the second boot mounts all of
these disks and looks at the stores; to it, a real cut and a replayed one are the same: a disk that stopped
somewhere in its log.

The mutants prove the harness: without the sync of a commit, or with a database that does not sync, it has to
find a loss. They run in the same boots on disks of their own, and their replayed cuts keep nothing that may
be lost.
"""

from __future__ import annotations

import contextlib
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.inspection import ROOT
from tests.vm.machine import Machine, MachineError
from tests.vm.verdict import faults
from tests.vm.volatile_disk import VolatileDisk, make_base
from tests.vm.workload import KEPT, MUTANTS

pytestmark = [pytest.mark.lane("vm"), pytest.mark.timeout(3600)]

SIZE = 1 << 30
SECONDS = 900.0  # that a workload may take for its operations before its machine counts as stuck
AT_STAKE = 4  # blocks, at least, that a cut between a write and its flush may lose
OPERATIONS = 25  # that the slowest workload finished before the power is cut
COMMIT, DATABASE = MUTANTS


@dataclass(frozen=True, slots=True)
class Run:
    """One workload: its disk's file system, its seed, how often its power is cut, what is mutated."""

    file_system: str
    seed: int
    cuts: int
    mutant: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """One power cut and what was wrong after it."""

    run: Run
    said: str
    lost: int  # blocks that lost what was written to them
    faults: list[str]


def power_cuts(directory: Path, runs: Sequence[Run], seed: int) -> list[Cut]:
    """One round; each run's last cut is the real one."""
    choice = random.Random(seed)
    with contextlib.ExitStack() as stack:
        disks = [
            stack.enter_context(
                VolatileDisk(
                    directory, make_base(directory / f"base{number}", file_system=run.file_system, size=SIZE)
                )
            )
            for number, run in enumerate(runs)
        ]
        _work(directory, runs, disks, choice)
        cuts = [
            (run, disk, at, how)
            for run, disk in zip(runs, disks, strict=True)
            for at, how in _moments(disk, run, choice)
        ]
        targets = [directory / f"cut{number}" for number in range(len(cuts))]
        lost = [
            disk.cut(at, None if how is None else random.Random(how), target)
            for (_, disk, at, how), target in zip(cuts, targets, strict=True)
        ]
        reports = _look(directory, targets, [run.file_system for run, *_ in cuts])
        return [
            Cut(
                run,
                f"{run}, cut at {at} of {len(disk)} with seed {how}, in round {seed}",
                blocks,
                faults(disk.events(at), json.loads(report.read_text(encoding="utf-8"))),
            )
            for (run, disk, at, how), blocks, report in zip(cuts, lost, reports, strict=True)
        ]


def _moments(disk: VolatileDisk, run: Run, choice: random.Random) -> list[tuple[int, int | None]]:
    """Positions of cuts with the seed that decides what is kept (None: nothing), the real one last."""
    ends, kept = disk.positions("end"), disk.positions("end", KEPT)
    risky = [at for at in disk.risky(blocks=AT_STAKE) if at > ends[0]]
    moments: list[tuple[int, int | None]] = []
    for number in range(run.cuts - 1):
        if run.mutant == DATABASE:
            moments.append((choice.choice(ends[len(ends) // 2 :]), None))
        elif run.mutant == COMMIT or number % 8 == 0:
            moments.append((choice.choice(kept), None))
        elif number % 4 == 0:
            moments.append((choice.choice(ends), None))
        else:
            moments.append((choice.choice(risky), choice.getrandbits(32) if number % 2 else None))
    return [*moments, (len(disk), choice.getrandbits(32))]


def _work(directory: Path, runs: Sequence[Run], disks: Sequence[VolatileDisk], choice: random.Random) -> None:
    with Machine(directory, disks=disks) as machine:
        machine.boot()
        command = ""
        for number, run in enumerate(runs):
            device, top = f"/dev/vd{'abcdefghij'[number]}", f"/mnt/{number}"
            machine.run("mkdir", "-p", top)
            machine.run("mount", "-t", run.file_system, device, top)
            words = [sys.executable, "-m", "tests.vm.workload", device, f"{top}/{ROOT}", str(run.seed)]
            words += [run.mutant] if run.mutant else []
            command += f"{shlex.join(words)} &\n"

        def cut_later(_: bytes) -> None:
            for disk in disks:
                for what, count in ((None, OPERATIONS), (KEPT, 2)):
                    going = disk.wait_for("end", what, count=count, timeout=SECONDS, unless="failed")
                    assert going, [event for event in disk.events(len(disk)) if "failed" in event]
            time.sleep(choice.uniform(0.0, 2.0))
            choice.choice(disks).wait_for_unflushed(blocks=AT_STAKE, timeout=60.0)  # the moment of the cut
            machine.kill()

        done: subprocess.CompletedProcess[bytes] | None = None
        with contextlib.suppress(MachineError):
            script = f"echo start\n{command}wait"
            done = guest.run(machine, "sh", "-c", script, timeout=2 * SECONDS, on_output=cut_later)
        assert done is None, f"a workload ended by itself: {done.stderr.decode()}"
    for disk in disks:
        disk.unplug()
        assert not disk.positions("failed"), [*disk.events(len(disk))][-1]


def _look(directory: Path, disks: Sequence[Path], file_systems: Sequence[str]) -> list[Path]:
    with Machine(directory, disks=disks) as machine:
        machine.boot()
        names = [f"report{number}" for number in range(len(disks))]
        commands = []
        for turn in range(2):  # as many as the machine has processors
            arguments = []
            for number in range(turn, len(disks), 2):
                device = f"/dev/vd{'abcdefghijklmnopqrstuvwxyz'[number]}"
                arguments += [device, file_systems[number], f"/run/share/{names[number]}"]
            commands.append(shlex.join([sys.executable, "-m", "tests.vm.inspection", *arguments]))
        done = guest.run(machine, "sh", "-c", f"{commands[0]} & {commands[1]}; wait", timeout=SECONDS)
        assert done.returncode == 0, done.stderr.decode()
        return [machine.share / name for name in names]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> list[Cut]:
    runs = [Run("ext4", 1, 3), Run("xfs", 2, 2), Run("ext4", 3, 4, COMMIT), Run("ext4", 4, 2, DATABASE)]
    return power_cuts(tmp_path_factory.mktemp("cuts"), runs, seed=1)


def test_power_cut_breaks_no_promise(cuts: list[Cut], record_property: Callable[[str, object], None]) -> None:
    ours = [cut for cut in cuts if not cut.run.mutant]
    record_property("blocks that lost writes in each cut:", [cut.lost for cut in ours])
    assert len(ours) == 5
    assert any(cut.lost for cut in ours)
    assert [(cut.said, cut.faults) for cut in ours if cut.faults] == []


@pytest.mark.parametrize("mutant", [COMMIT, DATABASE])
def test_missing_sync_is_found(cuts: list[Cut], mutant: str) -> None:
    assert [cut for cut in cuts if cut.run.mutant == mutant and cut.faults]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 105))
def test_many_power_cuts_break_no_promise(
    tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    found = power_cuts(tmp_path, [Run("ext4", seed, 6), Run("xfs", seed + 1000, 4)], seed)
    record_property("blocks that lost writes in each cut:", [cut.lost for cut in found])
    assert len(found) == 10
    assert [(cut.said, cut.faults) for cut in found if cut.faults] == []
    # What an operation that returned has flushed cannot be lost: those cuts lose little or nothing.
    assert len([cut for cut in found if cut.lost]) >= 5
