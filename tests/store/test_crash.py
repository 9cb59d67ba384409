"""Killing a process at any step of any operation of a store leaves the state of before it or of after it.

Every case traces an operation once, and then does it again for each step, SQLite's own writes and syncs
included: killed there; with an error from the kernel instead of that step, EIO, after which another process
does it again, or ENOSPC, after which the same process does; or stopped there while another process opens the
store. Another process then judges, see crash.py. The short run tries a spread of the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.archive.images import docker_archive
from tests.driver.ground import host_disk
from tests.driver.strace import Step, Victims, spread
from tests.store.crash import Case, Disturb, Ground
from tests.store.crash_cases import BY_NAME, CASES
from tests.store.victim import LOWER, UPPER

pytestmark = [pytest.mark.lane("root", "overlay", "loop", "strace"), pytest.mark.timeout(3600)]

log = logging.getLogger(__name__)

FEW = 6  # steps of a list that the short run tries, besides the first of each kind of call
# Not rm-and-reap: whoever opens the store between its deletions and the transaction that records them does
# that transaction too, and waits for its turn.
WITH_BYSTANDERS = [
    "create-heir", "import-tar", "commit-limited", "rm", "resize", "resize-less", "rename", "mount",
    "apply-limited",
]  # fmt: skip

ALL = [
    # Growing what is mounted takes a capability that few machines give.
    pytest.param(
        case, id=case.name, marks=[pytest.mark.lane("resource")] if case.name == "resize-mounted" else []
    )
    for case in CASES
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
    """Disturb every one of the steps and fail with all that is wrong; the log says how many they are."""
    assert steps
    log.info("%s: %d steps", ground.root.name, len(steps))
    found = list(ground.attempt(steps, disturb))
    assert not found, f"{len(found)} of {len(steps)} steps:\n" + "\n".join(found)


def chosen(steps: list[Step], config: pytest.Config) -> list[Step]:
    return steps if config.option.long else spread(steps, FEW)


@pytest.mark.parametrize("case", ALL)
def test_kill(case: Case, disk: Path, victims: Victims, pytestconfig: pytest.Config) -> None:
    ground = Ground(disk / f"kill-{case.name}", case, victims, quick=not pytestconfig.option.long)
    disturb_all(ground, chosen(ground.trace.points(), pytestconfig), Ground.kill)


@pytest.mark.parametrize("case", ALL)
def test_error(case: Case, disk: Path, victims: Victims, pytestconfig: pytest.Config) -> None:
    ground = Ground(disk / f"error-{case.name}", case, victims, quick=not pytestconfig.option.long)
    steps = chosen(ground.trace.failing(), pytestconfig)
    every = 1 if pytestconfig.option.long else 2  # in the short run each step gets one of the errors
    disturb_all(ground, steps[::every], partial(Ground.fail, error="EIO"))
    disturb_all(ground, steps[every - 1 :: every], partial(Ground.fail_and_retry, error="ENOSPC"))


@pytest.mark.long
@pytest.mark.parametrize("name", WITH_BYSTANDERS)
def test_bystander(name: str, disk: Path, victims: Victims) -> None:
    """A process that opens the store while another is in the middle of something disturbs nothing."""
    ground = Ground(disk / f"by-{name}", BY_NAME[name], victims)
    disturb_all(ground, ground.trace.changes, Ground.interrupt)
