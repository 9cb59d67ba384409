"""What every union does, on the real kernel: overlay by both interfaces, and AUFS where there is one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerlimit.errors import Busy, Error, InvalidArgument
from layerlimit.linux.mountinfo import below, read
from layerlimit.linux.statx import is_mount_point
from layerlimit.union import Stack, Union
from tests.union import stacks
from tests.union.stacks import mounted


def test_a_stack_needs_something_to_show() -> None:
    with pytest.raises(InvalidArgument, match="at least one"):
        Stack(())


def test_a_stack_takes_absolute_paths() -> None:
    with pytest.raises(InvalidArgument, match=r"not relative"):
        Stack((Path("/a"), Path("relative")))


def test_a_frozen_stack_has_its_upper_as_nearest_lower() -> None:
    stack = Stack((Path("/a"), Path("/b")), Path("/u"), Path("/w"))
    assert stack.frozen == Stack((Path("/u"), Path("/a"), Path("/b")))
    assert stack.frozen.frozen == stack.frozen


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_the_nearest_layer_wins_and_all_are_there(union: Union, ground: Path, count: int) -> None:
    stack = stacks.make(ground, count)
    with mounted(union, stack, ground / "target") as target:
        assert set(os.listdir(target)) == stacks.names(count)
        assert (target / "same").read_text() == "0"
        assert (target / f"own-{count - 1}").read_text() == str(count - 1)
    assert os.listdir(ground / "target") == []


def test_126_layers_with_names_of_64_digits(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 126, name=stacks.sha256)
    with mounted(union, stack, ground / "target") as target:
        assert union.is_mounted(target)
        assert set(os.listdir(target)) == stacks.names(126)
        for number in range(126):
            assert (target / f"own-{number}").read_text() == str(number)
        (target / "own-125").unlink()
        assert not (target / "own-125").exists()
    with mounted(union, stack, ground / "target", read_only=True) as target:
        assert set(os.listdir(target)) == stacks.names(125)


def test_changes_go_to_the_upper_only(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 2)
    before = {path: path.read_text() for lower in stack.lowers for path in lower.iterdir()}
    with mounted(union, stack, ground / "target") as target:
        (target / "new").write_text("new")
        (target / "same").write_text("changed")
        (target / "own-1").rename(target / "moved")
        (target / "directory").mkdir()
        os.link(target / "new", target / "directory" / "link")
        os.symlink("new", target / "symlink")
    assert stack.upper is not None
    assert (stack.upper / "new").read_text() == "new"
    assert (stack.upper / "same").read_text() == "changed"
    assert (stack.upper / "moved").read_text() == "1"
    assert (stack.upper / "directory" / "link").samefile(stack.upper / "new")
    assert os.readlink(stack.upper / "symlink") == "new"
    after = {path: path.read_text() for lower in stack.lowers for path in lower.iterdir()}
    assert after == before


def test_a_deletion_is_a_whiteout_of_the_form(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 2)
    with mounted(union, stack, ground / "target") as target:
        (target / "own-1").unlink()
        assert "own-1" not in os.listdir(target)
        assert not (target / "own-1").exists()
    assert stack.upper is not None
    if union.form == "overlay":
        found = (stack.upper / "own-1").lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0
    else:
        assert (stack.upper / ".wh.own-1").is_file()
    # It holds wherever the layer is in a stack later.
    (ground / "over").mkdir()
    (ground / "work-2").mkdir()
    higher = Stack((stack.upper, *stack.lowers), ground / "over", ground / "work-2")
    with mounted(union, higher, ground / "target") as target:
        assert set(os.listdir(target)) == stacks.names(2) - {"own-1"}


def test_a_directory_made_anew_is_opaque(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 1)
    (stack.lowers[0] / "directory").mkdir()
    (stack.lowers[0] / "directory" / "old").touch()
    with mounted(union, stack, ground / "target") as target:
        shutil.rmtree(target / "directory")
        (target / "directory").mkdir()
        (target / "directory" / "new").touch()
        assert os.listdir(target / "directory") == ["new"]
    assert stack.upper is not None
    if union.form == "overlay":
        assert os.getxattr(stack.upper / "directory", "trusted.overlay.opaque") == b"y"
    else:
        assert (stack.upper / "directory" / ".wh..wh..opq").is_file()
    with mounted(union, stack, ground / "target", read_only=True) as target:
        assert os.listdir(target / "directory") == ["new"]


def refused(attempt: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="Read-only") as caught:
        attempt()
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_view_cannot_be_written(union: Union, ground: Path, count: int) -> None:
    stack = stacks.make(ground, count)
    with mounted(union, Stack(stack.lowers), ground / "target") as target:
        assert union.is_mounted(target)
        assert set(os.listdir(target)) == stacks.names(count)
        refused(lambda: (target / "new").touch())
        refused(lambda: (target / "same").write_text("changed"))
        refused(lambda: (target / "same").unlink())
        refused(lambda: (target / "same").chmod(0o600))
        refused(lambda: (target / "directory").mkdir())
    assert set(os.listdir(stack.lowers[0])) == {"own-0", "same"}


def test_a_read_only_mount_shows_the_upper_of_a_live_one(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 2)
    (ground / "view").mkdir()
    with mounted(union, stack, ground / "target") as target:
        (target / "new").write_text("new")
        (target / "own-0").unlink()
        with mounted(union, stack, ground / "view", read_only=True) as view:
            assert set(os.listdir(view)) == {"new", "same", "own-1"}
            refused(lambda: (view / "new").write_text("changed"))
        (target / "new").write_text("again")
        assert (target / "new").read_text() == "again"


def test_an_upper_alone(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 0)
    with mounted(union, stack, ground / "target") as target:
        (target / "file").write_text("x")
    assert stack.upper is not None
    assert (stack.upper / "file").read_text() == "x"


@pytest.mark.parametrize(
    "name",
    ["a:b", "a,b", "a\\b", "a b", "a\nb", "a=b", 'a"b', "\\072", "a\\:b\\,c", "é", ":", "x" * 250],
    ids=ascii,
)
def test_names_with_any_character(union: Union, ground: Path, name: str) -> None:
    room = ground / name
    room.mkdir()
    stack = stacks.make(room, 3, name=lambda number: f"{name[:200]}{number}")
    with mounted(union, stack, room / "target") as target:
        assert set(os.listdir(target)) == stacks.names(3)
        (target / "same").write_text("changed")
        (target / "own-2").unlink()
    with mounted(union, stack, room / "target", read_only=True) as target:
        assert (target / "same").read_text() == "changed"
        assert set(os.listdir(target)) == {"own-0", "own-1", "same"}


@pytest.mark.parametrize("missing", ["lower", "upper", "target"])
@pytest.mark.parametrize("count", [2, 60])
def test_a_failure_leaves_nothing(union: Union, ground: Path, missing: str, count: int) -> None:
    stack = stacks.make(ground, count)
    gone = {"lower": stack.lowers[-1], "upper": stack.upper, "target": ground / "target"}[missing]
    assert gone is not None
    shutil.rmtree(gone)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(Error) as caught:
        union.mount(stack, ground / "target")
    assert os.fspath(ground / "target") in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert [entry.mount_point for entry in below(ground, read())] in ([], [ground])
    assert os.listdir("/proc/self/fd") == descriptors
    assert not union.is_mounted(ground / "target")


def test_a_busy_mount_stays_and_says_so(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 1)
    union.mount(stack, ground / "target")
    with (ground / "target" / "held").open("w") as held:
        with pytest.raises(Busy, match="target is in use"):
            union.unmount(ground / "target")
        assert union.is_mounted(ground / "target")
        held.write("goes on")
    union.unmount(ground / "target")
    assert not union.is_mounted(ground / "target")


def test_unmounting_waits_for_the_last_user(union: Union, ground: Path) -> None:
    stack = stacks.make(ground, 1)
    union.mount(stack, ground / "target")
    held = (ground / "target" / "held").open("w")
    timer = threading.Timer(0.15, held.close)
    timer.start()
    union.unmount(ground / "target")
    timer.join()
    assert not is_mount_point(ground / "target")


def test_what_is_not_mounted_is_unmounted(union: Union, ground: Path) -> None:
    (ground / "target").mkdir()
    for target in (ground / "target", ground / "none"):
        union.unmount(target)
        assert not union.is_mounted(target)


def test_threads_mount_at_the_same_time(union: Union, ground: Path) -> None:
    together = threading.Barrier(6)

    def work(number: int) -> None:
        room = ground / f"room:{number}"
        room.mkdir()
        stack = stacks.make(room, 3 + number)
        together.wait()
        for turn in range(5):
            with mounted(union, stack, room / "target") as target:
                assert stacks.names(3 + number) <= set(os.listdir(target))
                (target / f"turn-{turn}").touch()
        assert stack.upper is not None
        assert len(list(stack.upper.glob("turn-*"))) == 5

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_the_backing_of_what_is_not_there_yet_is_its_parents(union: Union, ground: Path) -> None:
    union.check_backing(ground)
    union.check_backing(ground / "none" / "below")


def test_status_is_rows_of_text(union: Union) -> None:
    rows = union.status()
    assert rows
    assert all(text.strip() for row in rows for text in row)
