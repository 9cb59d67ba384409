"""What the kill tests rest on: a kill at the entry of a call keeps the call from happening."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.driver.strace import Step, Victims, parse

pytestmark = pytest.mark.lane("root", "overlay", "strace")


def test_a_call_at_which_a_process_is_killed_has_not_happened_and_the_one_before_has(tmp_path: Path) -> None:
    with Victims(tmp_path) as victims:
        trace = victims.run(tmp_path / "listed", "open", str(tmp_path / "listed")).trace
        names = [step.text for step in trace.steps if step.call == "mkdir"]
        assert len(names) > 5
        for number in (1, 5):
            root = tmp_path / f"killed{number}"
            outcome = victims.kill_at(Step("mkdir", number + 1, "", True), root, "open", str(root))
            assert outcome.result == ""
            made = [path for path in (root, *root.glob("*")) if path.is_dir()]
            assert len(made) == number


def test_an_error_comes_instead_of_the_call(tmp_path: Path) -> None:
    with Victims(tmp_path) as victims:
        root = tmp_path / "root"
        outcome = victims.fail_at(Step("mkdir", 1, "", True), "ENOSPC", root, "open", str(root))
        assert (outcome.result, outcome.typed) == ("OutOfSpace", True)
        assert not root.exists()


def test_points_are_all_changes_and_what_follows_them() -> None:
    trace = parse('close(3) = 0\nmkdir("a", 0700) = 0\nopenat(AT_FDCWD, "b", O_RDONLY) = 3\nclose(3) = 0\n')
    assert [(step.call, step.number) for step in trace.points()] == [("mkdir", 1), ("openat", 1)]
    assert [step.call for step in trace.changes] == ["mkdir"]
