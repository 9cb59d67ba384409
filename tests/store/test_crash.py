"""Killing a process at any step of any operation of a store leaves the state of before it or of after it.

Every case traces an operation once, and then does it again for each step, killed there, SQLite's own writes
and syncs included. Another process then judges, see crash.py. The short run tries a spread of the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive.images import docker_archive
from tests.driver.ground import host_disk
from tests.driver.strace import Step, Victims, spread
from tests.store.crash import Case, Disturb, Ground
from tests.store.crash_cases import CASES
from tests.store.victim import LOWER, UPPER

pytestmark = [pytest.mark.lane("root", "overlay", "loop", "strace"), pytest.mark.timeout(3600)]

FEW = 6  # steps of a list that the short run tries, besides the first of each kind of call
# After these the next opening goes on by itself, to a state that is neither that of before nor that of after.
GOES_ON = {"rm", "open-left-over", "rebuild-missing"}

KILLED = [
    # Growing what is mounted takes a capability that few machines give.
    pytest.param(
        case, id=case.name, marks=[pytest.mark.lane("resource")] if case.name == "resize-mounted" else []
    )
    for case in CASES
    if case.name not in GOES_ON
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with host_disk(tmp_path_factory.mktemp("crash")) as path:
        (path / "image.tar").write_bytes(docker_archive([LOWER, UPPER]))
        yield path


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with Victims(tmp_path_factory.mktemp("victims"), "tests.store.victim") as server:
        yield server


def disturb_all(ground: Ground, steps: list[Step], disturb: Disturb) -> None:
    """Disturb every one of the steps and fail with all that is wrong."""
    assert steps
    found = list(ground.attempt(steps, disturb))
    assert not found, f"{len(found)} of {len(steps)} steps:\n" + "\n".join(found)


def chosen(steps: list[Step], config: pytest.Config) -> list[Step]:
    return steps if config.option.long else spread(steps, FEW)


@pytest.mark.parametrize("case", KILLED)
def test_kill(case: Case, disk: Path, victims: Victims, pytestconfig: pytest.Config) -> None:
    ground = Ground(disk / f"kill-{case.name}", case, victims, quick=not pytestconfig.option.long)
    disturb_all(ground, chosen(ground.trace.points(), pytestconfig), Ground.kill)
