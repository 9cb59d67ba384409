"""The enumeration of crash.py is worth something: it catches each of the faults in mutants.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.driver.ground import host_disk
from tests.driver.strace import Victims
from tests.store.crash import Ground
from tests.store.crash_cases import BY_NAME
from tests.store.mutants import MUTANTS, Mutant

pytestmark = [pytest.mark.lane("root", "overlay", "loop", "strace"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with host_disk(tmp_path_factory.mktemp("mutants")) as path:
        yield path


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_is_caught(mutant: Mutant, disk: Path, tmp_path: Path) -> None:
    root = disk / mutant.name.replace(" ", "-")
    faulty = [mutant.name] if mutant.by != "stop" else []
    with Victims(tmp_path, "tests.store.victim", *faulty) as victims:
        if mutant.by == "order":
            with pytest.raises(AssertionError, match=mutant.says):
                Ground(root, BY_NAME[mutant.case], victims)
            return
        ground = Ground(root, BY_NAME[mutant.case], victims)
        if mutant.by == "kill":
            reports = ground.attempt(ground.trace.points(), Ground.kill)
        elif mutant.by == "stop":
            reports = ground.attempt(ground.trace.changes, partial(Ground.interrupt, fault=mutant.apply))
        else:
            reports = ground.attempt(ground.trace.failing(), partial(Ground.fail, error=mutant.by))
        assert any(mutant.says in report for report in reports), "survived"
