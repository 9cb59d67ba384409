"""overlay by mount(2): everything fits one page, or nothing is mounted."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from layerlimit.errors import InvalidArgument
from layerlimit.linux.mount import MOUNT_DATA_MAX
from layerlimit.linux.mountinfo import below, read
from layerlimit.union import Overlay, Stack, Union, overlay_page
from tests.union import stacks
from tests.union.stacks import mounted

pytestmark = [pytest.mark.lane("root", "mount2"), pytest.mark.guest]


@pytest.fixture
def union() -> Union:
    return Overlay(api="mount2")


def test_short_names_below_the_common_parent_come_first(ground: Path) -> None:
    stack = stacks.make(ground, 3)
    with ExitStack() as held:
        made = overlay_page.plan(stack, {"index": "off", "userxattr": None}, held)
    assert made.directory == ground / "lower"
    branches = f"upperdir={stack.upper},workdir={stack.work}"
    assert made.data == f"lowerdir=0:1:2,{branches},index=off,userxattr"


def test_one_layer_is_named_below_its_parent(ground: Path) -> None:
    stack = stacks.make(ground, 1)
    with ExitStack() as held:
        assert overlay_page.plan(stack, {}, held).directory == ground / "lower"


def test_a_layer_that_holds_another_is_still_named(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    with ExitStack() as held:
        made = overlay_page.plan(Stack((inner, outer)), {}, held)
    assert (made.directory, made.data) == (tmp_path, "lowerdir=outer/inner:outer")


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_special_characters_are_named_by_number(ground: Path, name: str) -> None:
    room = ground / name
    room.mkdir()
    stack = stacks.make(room, 2)
    with ExitStack() as held:
        made = overlay_page.plan(stack, {}, held)
        assert made.directory == Path("/proc/thread-self/fd")
        pairs = dict(option.split("=") for option in made.data.split(","))
        numbers = [*pairs["lowerdir"].split(":"), pairs["upperdir"], pairs["workdir"]]
        paths = [Path(os.readlink(f"/proc/self/fd/{number}")) for number in numbers]
    assert paths == [*stack.lowers, stack.upper, stack.work]


def test_what_names_do_not_fit_numbers_do(ground: Path) -> None:
    stack = stacks.make(ground, 4, name=stacks.sha256)
    with ExitStack() as held:
        by_name = overlay_page.plan(stack, {}, held)
        size = len(by_name.data)
        assert overlay_page.plan(stack, {}, held, room=size) == by_name
        by_number = overlay_page.plan(stack, {}, held, room=size - 1)
    assert by_number.directory == Path("/proc/thread-self/fd")
    assert len(by_number.data) < size


def test_what_does_not_fit_at_all_is_refused(ground: Path) -> None:
    stack = stacks.make(ground, 4, name=stacks.sha256)
    descriptors = os.listdir("/proc/self/fd")
    with ExitStack() as held, pytest.raises(InvalidArgument, match="mount\\(2\\) takes 40") as caught:
        overlay_page.plan(stack, {}, held, room=40)
    assert caught.value.code == "overlay.page"
    assert os.listdir("/proc/self/fd") == descriptors


def test_numbers_that_overflow_the_page_are_refused_before_any_mount(ground: Path) -> None:
    stack = stacks.make(ground, 2)
    long = {"context": "x" * MOUNT_DATA_MAX}
    with pytest.raises(InvalidArgument, match="bytes"):
        overlay_page.mount(stack, ground / "target", long, read_only=False)
    assert ground / "target" not in [entry.mount_point for entry in below(ground, read())]


@pytest.mark.parametrize("surplus", [-1, 0, 1])
def test_layers_around_the_end_of_the_page_are_all_there(ground: Path, surplus: int) -> None:
    """Names are padded until the data ends just before, at or just behind the last byte that is read."""
    options: dict[str, str | None] = {"index": "off"}
    room = ground
    count = 30
    fixed = len(f"lowerdir=,upperdir={room / 'upper'},workdir={room / 'work'},index=off") + count - 1
    length, rest = divmod(MOUNT_DATA_MAX + surplus - fixed, count)
    stack = stacks.make(
        room, count, name=lambda number: f"{number:x<{length + (rest if number == count - 1 else 0)}}"
    )
    with ExitStack() as held:
        data = overlay_page.plan(stack, options, held, room=2 * MOUNT_DATA_MAX).data
        assert len(data) == MOUNT_DATA_MAX + surplus
    overlay_page.mount(stack, room / "target", options, read_only=False)
    try:
        assert set(os.listdir(room / "target")) == stacks.names(count)
    finally:
        Overlay().unmount(room / "target")


def test_the_working_directory_of_the_process_stays(ground: Path) -> None:
    before = Path.cwd()
    with mounted(Overlay(api="mount2"), stacks.make(ground, 3), ground / "target"):
        assert Path.cwd() == before


def test_a_relative_target_is_the_callers(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ground)
    with mounted(Overlay(api="mount2"), stacks.make(ground, 2), Path("target")):
        assert set(os.listdir(ground / "target")) == stacks.names(2)
