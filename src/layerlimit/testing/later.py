"""What nine more years taught that driver (``aufs_test.go``, Docker 23.0), and what only this one can do."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from layerlimit.archive import Change, Kind
from layerlimit.driver import Driver
from layerlimit.errors import AlreadyExists, Busy, NotFound
from layerlimit.testing.factory import Behaviour, Factory
from layerlimit.testing.seed import stack_many

Create = Callable[..., None]

THREADS = 254  # as BenchmarkConcurrentAccess
_BRANCH = 77  # bytes of one branch in AUFS's option page beside the root's path: /diff/<64 digits>=ro+wh:
_PAGE = 4095


def matching_root(parent: Path) -> Path:
    """A root whose path is so long that an option page ends between two branches or inside ``=ro+wh``."""
    for length in range(1, 200):
        root = parent / ("x" * length)
        branch = _BRANCH + len(str(root))
        if _PAGE % branch == 0 or _PAGE % branch > branch - 2:
            return root
    raise AssertionError(f"no length of a path below {parent} matches")


class Later(Behaviour):
    """Clean-up at opening, many layers, many users, views, exports of deletions."""

    def test_remove_leaves_nothing(self, driver: Driver, create: Create, root: Path) -> None:
        before = sorted(_everything(root))
        create("0")
        create("1", "0")
        (driver.get("1") / "file").write_text("x" * 1000)
        driver.remove("1")
        driver.remove("0")
        after = [name for name in _everything(root) if "templates" not in name]
        assert sorted(after) == before

    def test_init_stale_cleanup(self, factory: Factory, root: Path) -> None:
        factory.open(root).create("1")
        for name in ("diff", "mnt"):
            stale = root / name / "123-removing" / "below"
            stale.mkdir(parents=True)
            (stale / "file").write_text("x")
        (root / "open").unlink(missing_ok=True)  # as after a boot: only then are these looked for
        factory.open(root)
        assert os.listdir(root / "diff") == os.listdir(root / "mnt") == ["1"]

    def test_mount_more_than_42_layers_matching_path_length(self, factory: Factory, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        driver = factory.open(matching_root(root))
        try:
            stack_many(driver, lambda id, parent="": factory.create(driver, id, parent))
        finally:
            driver.cleanup()

    def test_concurrent_access(self, driver: Driver, create: Create) -> None:
        create("base")
        create("second", "base")
        ids = [f"id-{number}" for number in range(THREADS)]

        def live(id: str) -> None:
            driver.create(id, "second")
            for _ in range(2):
                path = driver.get(id)
                (path / id).touch()
                driver.put(id)
            driver.remove(id)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(live, ids))
        assert driver.ids() == ["base", "second"]

    def test_one_layer_in_many_threads(self, driver: Driver, create: Create) -> None:
        create("base")
        create("shared", "base")

        def use(number: int) -> None:
            path = driver.get("shared")
            (path / str(number)).touch()
            driver.put("shared")

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(use, range(64)))
        assert not driver.state("shared").mounted
        with driver.mounted("shared") as path:
            assert {name.name for name in path.iterdir()} == {str(number) for number in range(64)}

    def test_create_what_exists(self, driver: Driver, create: Create) -> None:
        create("1")
        (driver.get("1") / "file").write_text("kept")
        with pytest.raises(AlreadyExists, match="1"):
            create("1")
        assert (driver.get("1") / "file").read_text() == "kept"

    def test_what_is_not_there(self, driver: Driver) -> None:
        for call in (
            driver.get,
            driver.put,
            driver.parent,
            driver.limit,
            driver.usage,
            driver.state,
            driver.diff,
            driver.changes,
            driver.diff_size,
            driver.mounts,
        ):
            with pytest.raises(NotFound, match="none"):
                call("none")
        with pytest.raises(NotFound, match="none"):
            driver.apply_diff("none", io.BytesIO())

    def test_parent_and_ids(self, driver: Driver, create: Create) -> None:
        create("b")
        create("c", "b")
        create("a", "c")
        assert driver.ids() == ["a", "b", "c"]
        assert [driver.parent(id) for id in "bca"] == ["", "b", "c"]

    def test_gets_are_counted(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        path = driver.get("2")
        assert driver.get("2") == path
        (path / "file").touch()
        assert driver.state("2").holds == 2
        driver.put("2")
        assert driver.state("2").mounted
        assert (path / "file").exists()
        driver.put("2")
        assert not driver.state("2").mounted
        driver.put("2")
        assert os.listdir(path) == []

    def test_data_survives_unmounting(self, driver: Driver, create: Create) -> None:
        create("1")
        (driver.get("1") / "below").write_text("1")
        driver.put("1")
        create("2", "1")
        (driver.get("2") / "above").write_text("2")
        driver.put("2")
        driver.cleanup()
        path = driver.get("2")
        assert {name.name: name.read_text() for name in path.iterdir()} == {"below": "1", "above": "2"}

    def test_busy_mount_stays(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        path = driver.get("2")
        with (path / "file").open("w") as file:
            with pytest.raises(Busy):
                driver.put("2")
            with pytest.raises(Busy):
                driver.remove("2")
            with pytest.raises(Busy, match="2"):
                driver.cleanup()
            file.write("goes on")
        assert (driver.get("2") / "file").read_text() == "goes on"

    def test_parent_with_children_stays(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        with pytest.raises(Busy, match="2"):
            driver.remove("1")
        driver.remove("2")
        driver.remove("1")
        assert driver.ids() == []

    def test_children_see_what_changed_before_they_were_mounted(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        create("3", "2")
        (driver.get("2") / "file").write_text("of 2")
        driver.put("2")
        assert (driver.get("3") / "file").read_text() == "of 2"
        (driver.get("3") / "file").write_text("of 3")
        assert (driver.get("2") / "file").read_text() == "of 2"

    def test_read_only_view(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        (driver.get("2") / "file").write_text("text")
        for id in ("1", "2"):
            view = driver.get(id, read_only=True)
            assert view != driver.get(id)
            with pytest.raises(OSError, match="Read-only"):
                (view / "new").touch()
            driver.put(id, read_only=True)
        assert (driver.get("2", read_only=True) / "file").read_text() == "text"
        driver.put("2", read_only=True)
        assert (driver.get("2") / "file").read_text() == "text"

    def test_views_without_a_writable_mount(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        with driver.mounted("2") as path:
            (path / "file").write_text("text")
        with driver.mounted("2", read_only=True) as view:
            assert (view / "file").read_text() == "text"
            with pytest.raises(OSError, match="Read-only"):
                (view / "file").write_text("other")
            assert driver.state("2").processes == 1
        assert driver.state("2").processes == 0
        assert not driver.state("2").mounted

    def test_deletions_travel(self, driver: Driver, create: Create) -> None:
        create("1")
        base = driver.get("1")
        (base / "gone").write_text("x")
        (base / "kept").write_text("x")
        (base / "directory" / "below").mkdir(parents=True)
        (base / "directory" / "below" / "file").write_text("x")
        (base / "remade").mkdir()
        (base / "remade" / "old").write_text("x")
        driver.put("1")
        create("2", "1")
        path = driver.get("2")
        (path / "gone").unlink()
        (path / "directory" / "below" / "file").unlink()
        (path / "directory" / "below").rmdir()
        (path / "remade" / "old").unlink()
        (path / "remade").rmdir()
        (path / "remade").mkdir()
        (path / "remade" / "new").write_text("y")
        assert [str(change) for change in driver.changes("2")] == [
            "C /directory",
            "D /directory/below",
            "D /gone",
            "C /remade",
            "A /remade/new",
            "D /remade/old",
        ]
        with driver.diff("2") as stream:
            raw = stream.read()
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            names = set(tar.getnames())
        assert {".wh.gone", "directory/.wh.below", "remade/.wh..wh..opq", "remade/new"} <= names
        assert not [name for name in names if name.startswith(".wh..wh.")]
        create("3", "1")
        driver.apply_diff("3", io.BytesIO(raw))
        assert driver.changes("3") == driver.changes("2")
        copy = driver.get("3")
        assert sorted(os.listdir(copy)) == sorted(os.listdir(path)) == ["directory", "kept", "remade"]
        assert os.listdir(copy / "remade") == ["new"]
        assert os.listdir(copy / "directory") == []

    def test_base_changes_are_all_added(self, driver: Driver, create: Create) -> None:
        create("1")
        path = driver.get("1")
        (path / "directory").mkdir()
        (path / "directory" / "file").touch()
        assert driver.changes("1") == [
            Change("/directory", Kind.ADD),
            Change("/directory/file", Kind.ADD),
        ]

    def test_apply_to_a_mounted_layer_is_refused(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        driver.get("2")
        with pytest.raises(Busy, match="2"):
            driver.apply_diff("2", io.BytesIO())
        driver.put("2")
        assert driver.apply_diff("2", io.BytesIO()) == 0

    def test_a_diff_can_be_left_half_read(self, driver: Driver, create: Create) -> None:
        create("1")
        (driver.get("1") / "file").write_bytes(bytes(8 << 20))
        with driver.diff("1") as stream:
            assert len(stream.read(512)) == 512
        driver.put("1")
        assert not driver.state("1").mounted

    def test_mounts_for_an_engine(self, driver: Driver, create: Create) -> None:
        create("1")
        (driver.get("1") / "below").touch()
        driver.put("1")
        create("2", "1")
        (mount,) = driver.mounts("2")
        assert mount.type == driver.union
        options = ",".join(mount.options)
        for id in ("1", "2"):
            assert f"/{id}" in options
        driver.release("2")
        (mount,) = driver.mounts("1")
        assert mount.type in ("bind", driver.union)
        driver.release("1")

    def test_usage_grows_with_what_is_written(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        path = driver.get("2")
        before = driver.usage("2")
        (path / "file").write_bytes(os.urandom(3 << 20))
        for number in range(10):
            (path / f"file-{number}").touch()
        os.sync()
        after = driver.usage("2")
        assert 3 << 20 <= after.bytes - before.bytes < (3 << 20) + (1 << 18)
        assert after.inodes - before.inodes >= 11

    def test_cleanup_names_what_is_busy_and_does_the_rest(self, driver: Driver, create: Create) -> None:
        create("base")
        with ExitStack() as held:
            for id in ("one", "two", "three"):
                create(id, "base")
                path = driver.get(id)
                if id != "two":
                    held.enter_context((path / "file").open("w"))
            with pytest.raises(Busy, match=r"one(.|\n)*three|three(.|\n)*one"):
                driver.cleanup()
            assert not driver.state("two").mounted
            assert driver.state("one").mounted


def _everything(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*")]
