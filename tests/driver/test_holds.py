"""Who uses a mount: get and put across processes, holds that die with their process, views, engines."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerlimit import Driver, Limit
from layerlimit.driver.holds import Holds, boot_id
from layerlimit.errors import Busy, Error
from layerlimit.limit import MIB
from layerlimit.linux.mount import MNT_DETACH, unmount
from tests import scratch
from tests.driver import goroot
from tests.driver.filling import fill, upper_of
from tests.driver.processes import process

pytestmark = pytest.mark.lane("root", "overlay", "loop")

LIMIT = Limit(16 * MIB)


@pytest.fixture(params=[None, LIMIT], ids=["plain", "limited"])
def driver(root: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """``child`` over ``base``, both with the limit of this run."""
    made = Driver(root, "overlay")
    made.create("base", limit=request.param)
    made.create("child", "base", limit=request.param)
    yield made
    made.cleanup()


# -- persistent holds --------------------------------------------------------------------------------


def test_gets_of_several_processes_are_counted(driver: Driver, root: Path) -> None:
    path = driver.get("child")
    with process(root) as one, process(root) as two:
        assert one.ask("driver.get('child')") == str(path)
        assert two.ask("driver.get('child')") == str(path)
        assert driver.state("child").holds == 3
        two.kill()  # a persistent hold outlives its process
        assert driver.state("child").holds == 3
        assert one.ask("driver.put('child')") == "None"
        assert one.ask("driver.put('child')") == "None"
        assert driver.state("child").mounted
    driver.put("child")
    assert not driver.state("child").mounted
    assert scratch.leftovers(root, patience=5) == []


def test_a_hold_outlives_the_driver(driver: Driver, root: Path) -> None:
    with process(root) as other:
        other.ask("driver.get('child')")
    again = Driver(root, "overlay")
    assert (again.state("child").mounted, again.state("child").holds) == (True, 1)
    again.put("child")
    assert not again.state("child").mounted


def test_cleanup_ends_holds_of_others(driver: Driver, root: Path) -> None:
    with process(root) as other:
        other.ask("driver.get('child')")
    driver.cleanup()
    assert (driver.state("child").mounted, driver.state("child").holds) == (False, 0)
    assert scratch.leftovers(root, patience=5) == []


def test_a_mount_without_a_record_counts_as_one(driver: Driver, root: Path) -> None:
    driver.get("child")
    (root / "holds" / "child" / "count").unlink()
    assert driver.state("child").holds == 1
    driver.get("child")
    assert driver.state("child").holds == 2
    driver.put("child")
    assert driver.state("child").mounted
    driver.put("child")
    assert not driver.state("child").mounted


def test_a_record_of_another_boot_does_not_count(driver: Driver, root: Path) -> None:
    driver.get("child")
    driver.get("child")
    record = root / "holds" / "child" / "count"
    record.write_text(record.read_text().replace(boot_id(), "0" * 36))
    for point in scratch.mounts_below(root):
        unmount(point)
    assert driver.state("child").holds == 0
    driver.get("child")
    assert driver.state("child").holds == 1
    driver.put("child")
    assert not driver.state("child").mounted


def test_a_mount_that_was_taken_away_is_made_again(driver: Driver, root: Path) -> None:
    (driver.get("child") / "file").write_text("kept")
    for point in scratch.mounts_below(root):
        unmount(point, flags=MNT_DETACH)
    assert not driver.state("child").mounted
    assert (driver.get("child") / "file").read_text() == "kept"
    assert driver.state("child").holds == 1


def test_a_failed_get_is_not_counted(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Busy("not now")

    with monkeypatch.context() as patch:
        patch.setattr(type(driver._union), "mount", fail)
        with pytest.raises(Busy, match="not now"):
            driver.get("child")
    assert (driver.state("child").holds, driver.state("child").mounted) == (0, False)
    assert scratch.leftovers(driver.root, patience=5) == []


def test_removal_that_respects_holds(driver: Driver) -> None:
    for read_only in (False, True):
        path = driver.get("child", read_only=read_only)
        with pytest.raises(Busy, match="child"):
            driver.remove("child", force=False)
        assert os.path.ismount(path)
        driver.put("child", read_only=read_only)
    driver.remove("child", force=False)
    assert not driver.exists("child")


# -- process holds -----------------------------------------------------------------------------------


def test_a_process_hold_ends_with_its_block(driver: Driver) -> None:
    with driver.mounted("child") as path:
        (path / "file").touch()
        assert driver.state("child").processes == 1
        with driver.mounted("child") as again:
            assert again == path
            assert driver.state("child").processes == 2
        assert driver.state("child").mounted
    state = driver.state("child")
    assert (state.mounted, state.holds, state.processes) == (False, 0, 0)


def test_a_process_hold_ends_with_an_error(driver: Driver) -> None:
    with pytest.raises(ZeroDivisionError), driver.mounted("child"):
        _ = 1 / 0
    assert not driver.state("child").mounted


def test_the_hold_of_a_killed_process_is_swept(driver: Driver, root: Path) -> None:
    with process(root) as other:
        other.ask("held.enter_context(driver.mounted('child'))")
        assert driver.state("child").processes == 1
        with pytest.raises(Busy, match="child"):
            driver.remove("child")
        other.kill()
    assert driver.state("child").processes == 0
    Driver(root, "overlay")  # opening sweeps
    assert not driver.state("child").mounted
    assert scratch.leftovers(root, patience=5) == []
    assert os.listdir(root / "holds") == []


def test_the_hold_of_a_killed_process_is_no_obstacle(driver: Driver, root: Path) -> None:
    with process(root) as other:
        other.ask("held.enter_context(driver.mounted('child'))")
        other.kill()
    driver.remove("child")
    driver.remove("base")
    assert scratch.leftovers(root, patience=5) == []


def test_persistent_and_process_holds_are_kept_apart(driver: Driver, root: Path) -> None:
    with process(root) as other:
        other.ask("held.enter_context(driver.mounted('child'))")
        driver.get("child")
        driver.put("child")
        assert driver.state("child").mounted
        driver.get("child")
    assert driver.state("child").mounted
    driver.put("child")
    assert not driver.state("child").mounted


def test_cleanup_spares_what_a_process_holds(driver: Driver, root: Path) -> None:
    with process(root) as other:
        other.ask("held.enter_context(driver.mounted('child'))")
        with pytest.raises(Busy, match="child"):
            driver.cleanup()
        assert driver.state("child").mounted
        assert other.ask("(driver.root / 'mnt/child/file').write_text('x')") == "1"
    driver.cleanup()


# -- views -------------------------------------------------------------------------------------------


def test_a_view_has_holds_of_its_own(driver: Driver) -> None:
    view = driver.get("child", read_only=True)
    path = driver.get("child")
    (path / "file").touch()
    driver.put("child")
    assert not os.path.ismount(path)
    assert os.path.ismount(view)
    driver.put("child", read_only=True)
    assert not driver.state("child").mounted
    assert scratch.leftovers(driver.root, patience=5) == []


def test_put_without_saying_which_ends_a_view(driver: Driver) -> None:
    view = driver.get("child", read_only=True)
    driver.put("child")
    assert not os.path.ismount(view)


def test_a_layer_with_a_view_is_removed(driver: Driver) -> None:
    driver.get("child", read_only=True)
    driver.get("base", read_only=True)
    driver.remove("child")
    driver.remove("base")
    assert scratch.leftovers(driver.root, patience=5) == []


def test_a_view_of_what_is_written_later(driver: Driver) -> None:
    """A view of a layer that nobody writes to shows all of it."""
    with driver.mounted("base") as path:
        (path / "below").write_text("below")
    with driver.mounted("child") as path:
        (path / "above").write_text("above")
    with driver.mounted("child", read_only=True) as view:
        assert {name.name for name in view.iterdir()} == {"below", "above"}
        for name in ("below", "above", "new"):
            with pytest.raises(OSError, match="Read-only"):
                (view / name).write_text("no")


# -- engines -----------------------------------------------------------------------------------------


def test_what_an_engine_was_given_stays_attached(driver: Driver, root: Path) -> None:
    (mount,) = driver.mounts("child")
    upper = next(option.partition("=")[2] for option in mount.options if option.startswith("upperdir="))
    work = next(option.partition("=")[2] for option in mount.options if option.startswith("workdir="))
    assert os.stat(upper).st_dev == os.stat(work).st_dev
    Driver(root, "overlay")  # sweeps
    assert os.stat(upper).st_dev == os.stat(work).st_dev
    (Path(upper) / "file").touch()
    with pytest.raises(Busy, match="child"):
        driver.apply_diff("child", io.BytesIO())
    driver.release("child")
    assert scratch.leftovers(root, patience=5) == []
    with driver.mounted("child") as path:
        assert os.listdir(path) == ["file"]


def test_all_that_reads_a_layer_sees_what_an_engine_writes(root: Path) -> None:
    """An engine is told of img/<id>/upper, and nothing is at diff/<id> until somebody reads the layer."""
    driver = Driver(root, "overlay")
    driver.create("base", limit=LIMIT)
    driver.create("child", "base", limit=LIMIT)
    reading: dict[str, Callable[[str], object]] = {
        "changes": lambda id: [change.path for change in driver.changes(id)],
        "size": driver.diff_size,
        "content": driver.content_id,
        "diff": lambda id: driver.diff(id).read(),
        "get": lambda id: (driver.get(id) / "file").read_text(),
    }
    for id in ("base", "child"):
        for name, read in reading.items():
            (upper_of(driver.mounts(id)) / "file").write_text("written by an engine")
            driver.sync(id)
            assert driver.is_mounted(id), name
            assert [path for path in scratch.mounts_below(root) if path.name == id] == [root / "img" / id], (
                name
            )
            there, usage = read(id), driver.usage(id)
            assert not driver.is_empty(id), name
            if name == "get":
                driver.put(id)
            driver.put(id)
            assert not driver.is_mounted(id), name
            if name != "get":
                assert read(id) == there, name
            assert driver.usage(id) == usage, name
    assert driver.changes("child")[0].path == "/file"
    driver.cleanup()


def test_a_sync_tells_of_a_write_that_failed_before_another_sync(tmp_path: Path) -> None:
    """By a descriptor from before it; whoever opens the layer later is told nothing any more."""
    goroot.run("mount", "-t", "tmpfs", "-o", "size=48m", "none", tmp_path)
    driver = Driver(tmp_path / "root")
    try:
        driver.create("limited", limit=Limit(32 * MIB, ephemeral=True))
        upper = upper_of(driver.mounts("limited"))
        opened = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            driver.sync("limited", opened=opened)
            room = os.statvfs(tmp_path)
            (tmp_path / "filler").write_bytes(os.urandom(room.f_bavail * room.f_frsize - 4 * MIB))
            (upper / "large").write_bytes(os.urandom(24 * MIB))
            with pytest.raises(Error):
                driver.sync("limited")
            (tmp_path / "filler").unlink()
            driver.sync("limited")
            with pytest.raises(Error):
                driver.sync("limited", opened=opened)
            driver.sync("limited", opened=opened)
        finally:
            os.close(opened)
    finally:
        driver.cleanup()
        driver.close()
        goroot.run("umount", tmp_path)


def test_put_gives_back_what_an_engine_was_given(driver: Driver, root: Path) -> None:
    driver.mounts("child")
    driver.put("child")
    assert scratch.leftovers(root, patience=5) == []
    driver.mounts("child")
    driver.get("child")
    driver.put("child")
    driver.put("child")
    driver.put("child")
    assert scratch.leftovers(root, patience=5) == []


def test_an_engine_that_still_has_it_mounted(driver: Driver, root: Path, tmp_path: Path) -> None:
    """Its mount keeps the image attached, whatever is given back; the next get is on that same image."""
    (mount,) = driver.mounts("child")
    target = tmp_path / "target"
    target.mkdir()
    goroot.run("mount", "-t", mount.type, mount.source, target, "-o", ",".join(mount.options))
    try:
        driver.release("child")
        (target / "file").write_text("through the engine's mount")
        limit = driver.limit("child")
        if limit is not None:
            assert fill(target / "fill", 4 * limit.bytes)[1] == errno.ENOSPC
            (target / "fill").unlink()
        assert (driver.get("child") / "file").read_text() == "through the engine's mount"
        images = set(scratch.loops_below(root))
        assert len(images) == (2 if limit else 0)
        driver.put("child")
    finally:
        goroot.run("umount", target)
    assert scratch.leftovers(root, patience=5) == []
    with driver.mounted("child") as path:
        assert (path / "file").read_text() == "through the engine's mount"


def test_put_of_a_layer_whose_record_was_lost(driver: Driver, root: Path) -> None:
    driver.get("child")
    (root / "meta" / "child").unlink()
    driver.put("child")
    assert scratch.leftovers(root, patience=5) == []


# -- the records themselves --------------------------------------------------------------------------


def test_process_holds_live_as_long_as_their_descriptor(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    one, two = holds.of_process("a"), holds.of_process("a")
    assert holds.live_processes("a") == 2
    one.close()
    one.close()
    assert holds.live_processes("a") == 1
    os.close(two._fd)  # what the end of a process does
    assert holds.live_processes("a") == 0
    two._fd = -1
    assert os.listdir(tmp_path / "a") == []


def test_records_of_nothing(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    assert holds.known() == []
    assert holds.count("a") == 0
    assert holds.live_processes("a") == 0
    assert not holds.of_engine("a")
    assert not holds.needed_by_child("a", lambda key: True)
    holds.set_count("a", 0)
    holds.drop_child("a", "b")
    holds.forget("a")
    holds.clear("a")
    assert holds.known() == []


@pytest.mark.parametrize("text", ["", "garbage", "x 1", f"{boot_id()} -1", f"{boot_id()} x", "1 2 3"])
def test_records_that_are_damaged_do_not_count(tmp_path: Path, text: str) -> None:
    holds = Holds(tmp_path)
    holds.set_count("a", 3)
    assert holds.count("a") == 3
    (tmp_path / "a" / "count").write_text(text)
    assert holds.count("a") == 0


def test_children_that_are_down_are_forgotten(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    up = {"one"}
    holds.add_child("a", "one")
    holds.add_child("a", "two")
    assert holds.needed_by_child("a", up.__contains__)
    asked: list[str] = []
    for number in range(50):
        holds.add_child("many", f"{number}")
    assert holds.needed_by_child("many", lambda child: not asked.append(child))  # type: ignore[func-returns-value]
    assert len(asked) == 1  # however many there are
    up.clear()
    assert not holds.needed_by_child("a", up.__contains__)
    assert os.listdir(tmp_path / "a") == []


def test_holds_of_many_threads(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    layer = threading.Lock()  # callers have the layer's

    def live(_: int) -> None:
        for _ in range(50):
            with layer:
                hold = holds.of_process("a")
            with layer:
                assert holds.live_processes("a") >= 1
                hold.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(8)))
    assert holds.live_processes("a") == 0
