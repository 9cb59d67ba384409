"""The enumeration of crash.py is worth something: it catches each of the faults in mutants.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.driver.ground import host_disk
from tests.driver.strace import Victims
from tests.store.crash import Disturb, Ground
from tests.store.crash_cases import BY_NAME
from tests.store.mutants import MUTANTS, Mutant

pytestmark = [pytest.mark.lane("root", "overlay", "loop", "strace"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with host_disk(tmp_path_factory.mktemp("mutants")) as path:
        yield path


DISTURB: dict[str, Disturb] = {
    "kill": Ground.kill,
    "error": partial(Ground.fail, error="EIO"),
    "retry": partial(Ground.fail_and_retry, error="ENOSPC"),
}


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(
            mutant,
            id=mutant.name.replace(" ", "-"),
            marks=[] if mutant.by == "order" else [pytest.mark.long],
        )
        for mutant in MUTANTS.values()
    ],
)
def test_is_caught(mutant: Mutant, disk: Path, tmp_path: Path) -> None:
    root = disk / mutant.name.replace(" ", "-")
    faulty = [mutant.name] if mutant.by != "stop" else []
    with Victims(tmp_path, "tests.store.victim", *faulty) as victims:
        if mutant.by == "order":
            with pytest.raises(AssertionError, match=mutant.says):
                Ground(root, BY_NAME[mutant.case], victims)
            return
        ground = Ground(root, BY_NAME[mutant.case], victims)
        if mutant.by == "stop":
            reports = ground.attempt(ground.trace.changes, partial(Ground.interrupt, fault=mutant.apply))
        else:
            steps = ground.trace.points() if mutant.by == "kill" else ground.trace.failing()
            reports = ground.attempt(steps, DISTURB[mutant.by])
        assert any(mutant.says in report for report in reports), "survived"
