"""The disk below a store is full, of blocks or of inodes: what is kept, works, and repairs itself."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerlimit import Limit, OutOfSpace, Policy, Store
from layerlimit.errors import Error
from layerlimit.store.reserve import PIECES
from tests.cli.conftest import Cli
from tests.driver.ground import host_disk, run

MIB = 1 << 20
POLICY = Policy(overcommit=100, floor=16 * MIB)
LIMIT = Limit(200 * MIB)

pytestmark = pytest.mark.lane("overlay", "loop")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with host_disk(tmp_path, mib=256) as disk:
        yield disk


@contextlib.contextmanager
def store(disk: Path) -> Iterator[Store]:
    with Store(disk / "root", policy=POLICY) as store:
        yield store


def fill(path: Path) -> None:
    """Write until there is not one byte more, as somebody who knows nothing of layers."""
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\xa5" * size)


def free(disk: Path) -> int:
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize


def use_up_inodes(directory: Path) -> None:
    directory.mkdir()
    with contextlib.suppress(OSError):
        for number in range(1 << 20):
            (directory / f"{number}").symlink_to("x")


def some_layers(store: Store) -> None:
    """A committed base, and over it: two limited layers, a mounted one, one without a limit."""
    store.create("new", limit=Limit(8 * MIB))
    store.commit("new", "base")
    for name in ("idle", "mounted", "other"):
        store.create(name, "base", limit=LIMIT)
    store.create("plain", "base")
    (store.mount("mounted") / "file").write_bytes(b"x" * MIB)
    store.driver.sync(store.stat("mounted").id)


# -- what still works ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_a_full_disk_can_be_looked_at_used_and_freed(disk: Path, what: str) -> None:
    with store(disk) as before:
        some_layers(before)
    if what == "blocks":
        fill(disk / "outside")
        assert free(disk) == 0
    else:
        use_up_inodes(disk / "outside")
        assert os.statvfs(disk).f_favail == 0
    with store(disk) as full:
        assert [info.name for info in full.ls()] == ["base", "idle", "mounted", "other", "plain"]
        assert full.state("mounted").mounted
        assert full.usage("mounted").bytes >= MIB
        full.view("view", "base")
        with full.mounted("view") as path:
            assert os.listdir(path) == []
        with full.mounted("mounted", read_only=True) as path:
            assert (path / "file").read_bytes() == b"x" * MIB
        full.rename("plain", "still plain")
        full.umount("mounted")
        assert list(full.check(quick=True)) == []
        for name in ("view", "mounted", "idle", "still plain"):
            full.rm(name)
        assert full.gc() == []
        assert [info.name for info in full.ls()] == ["base", "other"]
        assert sorted(full.driver.ids()) == sorted(full.stat(name).id for name in ("base", "other"))


def test_it_can_be_filled_again_and_again(disk: Path) -> None:
    """What was put aside is made again as soon as there is room."""
    with store(disk) as before:
        for number in range(3):
            before.create(f"{number}")
    for number in range(3):
        fill(disk / "outside")
        assert free(disk) == 0
        with store(disk) as full:
            full.rm(f"{number}")
            assert full.gc() == []
        assert len(os.listdir(disk / "root/reserve")) < PIECES
        (disk / "outside").unlink()
        with store(disk):
            assert len(os.listdir(disk / "root/reserve")) == PIECES


def test_what_frees_nothing_leaves_half_of_the_reserve(disk: Path) -> None:
    with store(disk) as before:
        before.create("new")
        before.commit("new", "base")
        before.create("to remove")
    fill(disk / "outside")
    with store(disk) as full:

        def take_all() -> None:
            for number in range(10_000):
                full.view(f"{number}", "base")
                fill(disk / "outside")

        with pytest.raises(OutOfSpace):
            take_all()
        full.rm("to remove")
        assert full.gc() == []


# -- what is refused ----------------------------------------------------------------------------------


def test_new_writable_layers_are_refused_below_the_floor(disk: Path) -> None:
    with store(disk) as before:
        some_layers(before)
        with (disk / "outside").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free(disk) - POLICY.floor + MIB)
        calls: list[Callable[[], object]] = [
            lambda: before.create("more", "base", limit=Limit(8 * MIB)),
            lambda: before.create("more", "base"),
            lambda: before.resize("idle", Limit(LIMIT.bytes + MIB)),
        ]
        for call in calls:
            with pytest.raises(
                OutOfSpace, match=r"floor of 16 MiB; the largest layers are mounted \(1 MiB\)"
            ) as caught:
                call()
            assert caught.value.code == "host.full"
        before.view("view", "base")
        (disk / "outside").unlink()
        before.create("more", "base", limit=Limit(8 * MIB))
        before.driver.cleanup()


# -- what is kept -------------------------------------------------------------------------------------


def write_many(directory: Path) -> dict[str, bytes]:
    """200 files, synced."""
    directory.mkdir()
    written = {f"{number}": os.urandom(1 + number * 97) for number in range(200)}
    for name, data in written.items():
        with (directory / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return written


def spoil(path: Path) -> None:
    """Make files and sync them until the layer takes no more writes."""
    for number in range(100_000):
        try:
            with (path / f"after-{number}").open("wb") as file:
                file.write(b"y" * 20_000)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno == errno.EROFS:
                return
    raise AssertionError("it went on taking writes")


@pytest.mark.parametrize("who", ["the layer", "an outside program"])
def test_synced_files_survive_and_the_next_mount_repairs(disk: Path, tmp_path: Path, who: str) -> None:
    cli = Cli(disk / "root")
    with store(disk) as before:
        before.create("web", limit=LIMIT)
        path = before.mount("web")
        written = write_many(path / "synced")
        with (disk / "outside").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free(disk) - 40 * MIB)
        if who == "the layer":
            fill(path / "too much")
            with contextlib.suppress(OSError):
                run("sync", "--file-system", path, check=False)
        else:
            fill(disk / "rest")
        spoil(path)
        assert before.state("web").health.state == "degraded"
        assert "layer.degraded" in {finding.code for finding in before.check(quick=True)}
        with pytest.raises(Error):
            before.mount("web")
    (entry,) = cli.json("inspect", "web")
    assert entry["health"]["state"] == "degraded"
    (entry,) = cli.json("df", "web")
    assert entry["state"] == "degraded"
    assert "web is degraded" in cli("df").err

    with store(disk) as still_full:
        still_full.umount("web")
        for _ in range(2):  # it cannot be repaired yet, and trying harms nothing
            with contextlib.suppress(OutOfSpace), still_full.mounted("web") as path:
                assert (path / "synced/0").read_bytes() == written["0"]
    (disk / "outside").unlink()
    (disk / "rest").unlink(missing_ok=True)
    with store(disk) as after:
        with after.mounted("web") as path:
            found = {each.name: each.read_bytes() for each in (path / "synced").iterdir()}
            assert found == written
            (path / "too much").unlink(missing_ok=True)
            (path / "again").write_text("it takes writes")
        assert after.state("web").health.state != "degraded"
        assert [finding.code for finding in after.check() if finding.code != "layer.recovered"] == []
