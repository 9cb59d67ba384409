"""overlay by fsopen and lowerdir+."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerlimit.linux.mount import FSCONFIG_STRING_MAX
from layerlimit.linux.mountinfo import read
from layerlimit.union import Overlay, Union, overlay_context
from tests.union import stacks
from tests.union.stacks import mounted

pytestmark = pytest.mark.lane("root", "lowerdir_plus")


@pytest.fixture
def union() -> Union:
    return Overlay(api="new")


def test_the_kernel_says_that_it_has_it() -> None:
    before = [entry.mount_id for entry in read()]
    overlay_context.available.cache_clear()
    assert overlay_context.available()
    assert [entry.mount_id for entry in read()] == before


@pytest.mark.parametrize("surplus", [-1, 0, 1, 700])
def test_paths_around_the_length_that_fsconfig_takes(ground: Path, surplus: int) -> None:
    room = ground
    while len(os.fsencode(room / "upper")) < FSCONFIG_STRING_MAX + surplus:
        missing = FSCONFIG_STRING_MAX + surplus - len(os.fsencode(room / "upper"))
        room /= "d" * (min(missing, 201) - 1 or 1)
    room.mkdir(parents=True)
    stack = stacks.make(room, 2)
    assert len(os.fsencode(stack.upper or "")) >= FSCONFIG_STRING_MAX + surplus
    with mounted(Overlay(api="new"), stack, room / "target") as target:
        assert set(os.listdir(target)) == stacks.names(2)
        (target / "new").touch()
    assert stack.upper is not None
    assert (stack.upper / "new").exists()


def test_a_backslash_in_the_upper_is_meant_literally(ground: Path) -> None:
    decoy = ground / "ab"
    room = ground / "a\\b"
    decoy.mkdir()
    room.mkdir()
    stacks.make(decoy, 1)  # what an unescaped name would lead to
    stack = stacks.make(room, 1)
    with mounted(Overlay(api="new"), stack, room / "target") as target:
        (target / "new").touch()
    assert (room / "upper" / "new").exists()
    assert not (decoy / "upper" / "new").exists()
