"""The 24 defects of the Go driver: one test each, that shows it is gone."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerlimit import Driver, Limit, archive, aufslimit
from layerlimit.errors import Busy, Corrupt, Error, InvalidArgument, NotFound
from layerlimit.limit import MIB
from layerlimit.linux.mount import MNT_DETACH, MOUNT_DATA_MAX, unmount
from layerlimit.union import Overlay, Stack, aufs_options
from layerlimit.union import Union as UnionProtocol
from tests import scratch
from tests.driver import goroot
from tests.driver.filling import fill, fill_inodes

pytestmark = pytest.mark.lane("root", "overlay", "loop")

LIMIT = Limit(16 * MIB)


@pytest.fixture(
    params=[
        pytest.param(Overlay(api="new"), id="new", marks=pytest.mark.lane("lowerdir_plus")),
        pytest.param(Overlay(api="mount2"), id="mount2", marks=pytest.mark.lane("mount2")),
    ]
)
def union(request: pytest.FixtureRequest) -> UnionProtocol:
    made: UnionProtocol = request.param
    return made


@pytest.fixture
def driver(root: Path, union: UnionProtocol) -> Iterator[Driver]:
    made = Driver(root, union)
    yield made
    made.cleanup()


def everything(root: Path) -> list[str]:
    """Names in the root, apart from the cache of templates."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if "templates" not in p.parts)


def test_01_no_failing_open_after_a_reboot(driver: Driver, root: Path) -> None:
    """What a reboot does to mounts is done to them here; every later use is on the image or an error."""
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    (driver.get("limited") / "kept").write_text("kept")
    for point in scratch.mounts_below(root):
        unmount(point, flags=MNT_DETACH)
    again = Driver(root)
    path = again.get("limited")
    assert (path / "kept").read_text() == "kept"
    written, error = fill(path / "fill", 4 * LIMIT.bytes)
    assert error == errno.ENOSPC
    assert written <= LIMIT.bytes * 1.01
    again.cleanup()
    os.rename(root / "containers_quota/limited.ext4", root / "elsewhere")
    with pytest.raises(Corrupt, match="limited"):
        again.get("limited")
    assert not os.path.ismount(path)
    with pytest.raises(OSError):
        (path / "escape").touch()
    with pytest.raises(OSError):
        (root / "diff" / "limited" / "escape").touch()


def test_02_a_failed_create_leaves_nothing(
    driver: Driver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.create("base")
    before = everything(root)
    for name in ("write_chain", "announce"):
        with monkeypatch.context() as patch:

            def fail(*_: object, name: str = name) -> None:
                raise OSError(errno.EIO, name)

            patch.setattr(driver._records, name, fail)
            for limit in (None, LIMIT):
                with pytest.raises(Error, match=name):
                    driver.create("new", "base", limit=limit)
                assert everything(root) == before
    assert not scratch.loops_below(root)
    driver.create("new", "base", limit=LIMIT)


def test_03_a_failed_removal_keeps_the_whole_layer(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    with (path / "file").open("w") as file:
        file.write("kept")
        with pytest.raises(Busy):
            driver.remove("limited")
        assert (root / "containers_quota/limited.ext4").exists()
    assert (driver.get("limited") / "file").read_text() == "kept"
    driver.remove("limited")
    assert not (root / "containers_quota/limited.ext4").exists()
    assert not scratch.loops_below(root)


def test_04_fstab_is_never_touched(driver: Driver) -> None:
    fstab = Path("/etc/fstab")
    before = (fstab.read_bytes(), fstab.stat().st_mtime_ns) if fstab.exists() else None
    driver.create("1", limit=LIMIT)
    driver.get("1")
    driver.put("1")
    driver.remove("1")
    assert ((fstab.read_bytes(), fstab.stat().st_mtime_ns) if fstab.exists() else None) == before


@pytest.mark.parametrize("id", ["../x", "a/b", "", "a\n", "x" * 4096])
def test_05_ids_are_validated(driver: Driver, root: Path, id: str) -> None:
    before = everything(root)
    with pytest.raises(InvalidArgument):
        driver.create(id)
    assert everything(root) == before
    assert not (root.parent / "x").exists()


def test_06_quotas_have_bounds(driver: Driver, root: Path) -> None:
    before = everything(root)
    for quota in (-1, -(1 << 40), 1 << 43, 1 << 80):
        with pytest.raises(InvalidArgument):
            driver.create_with_quota("1", "", quota)
    assert everything(root) == before


@pytest.mark.parametrize("base", [False, True])
def test_07_lost_and_found_is_never_seen(driver: Driver, root: Path, base: bool) -> None:
    if not base:
        driver.create("base")
    driver.create("limited", "" if base else "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "file").touch()
        assert os.listdir(path) == ["file"]
    # The repair of an unclean image makes one; it is not the layer's either.
    image = root / "containers_quota/limited.ext4"
    subprocess.run(["e2fsck", "-f", "-y", image], check=False, capture_output=True)
    goroot.run("debugfs", "-w", "-R", "mkdir lost+found", image)
    with driver.mounted("limited") as path:
        assert os.listdir(path) == ["file"]
        assert [change.path for change in driver.changes("limited")] == ["/file"]
        with driver.diff("limited") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            assert tar.getnames() == ["file"]


@pytest.mark.parametrize("user", [0, 1000])
def test_08_what_was_asked_for_can_be_used_by_everybody(driver: Driver, user: int) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    (path / "open").mkdir()
    (path / "open").chmod(0o777)
    space = os.statvfs(path)
    assert LIMIT.bytes <= space.f_bavail * space.f_frsize <= LIMIT.bytes * 1.01
    command = ["dd", "if=/dev/zero", "of=file", "bs=64k", f"count={LIMIT.bytes // 65536 - 4}"]
    done = subprocess.run(command, cwd=path / "open", check=False, capture_output=True, user=user)
    assert done.returncode == 0, done.stderr


def test_09_inodes_usage_resize_and_discard(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=Limit(16 * MIB, inodes=500))
    path = driver.get("limited")
    options = subprocess.run(
        ["findmnt", "-no", "OPTIONS", root / "img/limited"], check=True, capture_output=True
    )
    assert b"quota" not in options.stdout
    assert b"discard" in options.stdout
    made, error = fill_inodes(path, 2000)
    assert error == errno.ENOSPC
    assert 500 <= made <= 1100
    assert driver.usage("limited").inodes >= 500
    for number in range(made):
        (path / str(number)).unlink()
    driver.put("limited")
    driver.resize("limited", Limit(64 * MIB))
    assert driver.limit("limited") == Limit(64 * MIB, inodes=500)
    image = root / "containers_quota/limited.ext4"
    path = driver.get("limited")
    (path / "big").write_bytes(os.urandom(32 * MIB))
    os.sync()
    full = image.stat().st_blocks * 512
    assert full > 32 * MIB
    (path / "big").unlink()
    os.sync()
    deadline = time.monotonic() + 20
    while image.stat().st_blocks * 512 > full - 24 * MIB:
        assert time.monotonic() < deadline, "freed space did not return to the host"
        time.sleep(0.05)


def test_10_deleting_holds_no_lock(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in ("big", "other"):
        driver.create(id)
    deleting, go_on = threading.Event(), threading.Event()
    real = driver._removal.delete

    def slow(entry: Path) -> None:
        deleting.set()
        assert go_on.wait(60)
        real(entry)

    monkeypatch.setattr(driver._removal, "delete", slow)
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(driver.remove, "big")
        assert deleting.wait(60)
        driver.get("other")
        driver.put("other")
        driver.create("child", "other")
        monkeypatch.setattr(driver._removal, "delete", real)
        driver.create("big")  # even the same id
        go_on.set()
        removal.result(60)
    assert driver.ids() == ["big", "child", "other"]


def test_11_nothing_is_unmounted_lazily(driver: Driver) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    with (path / "file").open("wb") as file:
        for call in (driver.put, driver.remove):
            with pytest.raises(Busy):
                call("limited")
        with pytest.raises(Busy):
            driver.cleanup()
        assert os.path.ismount(path)
        file.write(b"x")


def test_12_metadata_of_aufs_is_not_exported(root: Path) -> None:
    """A branch as AUFS leaves it, exported by a driver that opens it as AUFS."""
    goroot.make(root)
    stream = archive.read_stream(
        root / "diff" / goroot.CHILD, form=archive.Form.AUFS, lowers=[root / "diff" / goroot.BASE]
    )
    with stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        names = set(tar.getnames())
    assert "etc/.wh.gone" in names
    assert "opaque/.wh..wh..opq" in names
    assert not [name for name in names if name.startswith(".wh..wh.")]


def test_13_no_layer_vanishes_for_want_of_room(root: Path) -> None:
    """Longer options than a page: refused or split, never cut."""
    lowers = tuple(root / f"{number:064}" / ("x" * 100) for number in range(100))
    for path in lowers:
        path.mkdir(parents=True)
    for name in ("upper", "work", "target"):
        (root / name).mkdir()
    branches = [aufs_options.writable(str(root / "upper"))]
    branches += [aufs_options.read_only(str(path)) for path in lowers]
    calls = aufs_options.calls(branches, ["dio", "xino=/dev/shm/aufs.xino"], room=MOUNT_DATA_MAX)
    assert len(calls) > 1
    assert all(len(call) <= MOUNT_DATA_MAX for call in calls)
    assert all(str(path) in "".join(calls) for path in lowers)
    for number, path in enumerate(lowers):
        (path / f"file-{number}").touch()
    for union in (Overlay(api="new"), Overlay(api="mount2")):
        union.mount(Stack(lowers, root / "upper", root / "work"), root / "target")
        try:
            assert len(os.listdir(root / "target")) == 100
        finally:
            union.unmount(root / "target")


def test_14_mounts_at_once_do_not_race(driver: Driver) -> None:
    """On AUFS the shared xino file raced; here every mount at once has to succeed, on any union."""
    driver.create("base")
    ids = [f"id-{number}" for number in range(24)]
    for id in ids:
        driver.create(id, "base")
    together = threading.Barrier(len(ids))

    def mount(id: str) -> None:
        together.wait()
        (driver.get(id) / id).touch()

    with ThreadPoolExecutor(len(ids)) as pool:
        list(pool.map(mount, ids))
    assert all(driver.state(id).mounted for id in ids)


def test_15_put_and_cleanup_say_what_failed_and_detach(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    with (path / "file").open("w"):
        with pytest.raises(Busy, match="limited"):
            driver.put("limited")
        with pytest.raises(Busy, match="limited"):
            driver.cleanup()
    driver.cleanup()
    assert scratch.leftovers(root, patience=5) == []
    driver.cleanup()


def test_16_an_unknown_parent_leaves_no_base(driver: Driver, root: Path) -> None:
    before = everything(root)
    for limit in (None, LIMIT):
        with pytest.raises(NotFound, match="unknown"):
            driver.create("1", "unknown", limit=limit)
    assert driver.exists("1") is False
    assert everything(root) == before


def test_17_get_of_an_unknown_id_fails(driver: Driver, root: Path) -> None:
    before = everything(root)
    for read_only in (False, True):
        with pytest.raises(NotFound, match="unknown"):
            driver.get("unknown", read_only=read_only)
    with pytest.raises(NotFound), driver.mounted("unknown"):
        pass
    assert everything(root) == before


def test_18_the_empty_id_does_not_exist(driver: Driver) -> None:
    driver.create("1")
    assert driver.exists("") is False
    assert driver.exists("..") is False


@pytest.mark.parametrize("limit", [None, LIMIT], ids=["plain", "limited"])
def test_19_a_removed_id_starts_anew(driver: Driver, limit: Limit | None) -> None:
    driver.create("base")
    for turn in range(3):
        driver.create("1", "base", limit=limit)
        path = driver.get("1")
        assert os.path.ismount(path)
        assert os.listdir(path) == []
        assert driver.state("1").holds == 1
        (path / f"turn-{turn}").touch()
        driver.get("1")
        driver.remove("1")
        assert not path.exists()


@pytest.mark.lane("strace")
def test_20_a_limited_create_launches_no_program(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from layerlimit import Driver, Limit; "
        "driver = Driver(sys.argv[1]); driver.create(sys.argv[2], limit=Limit(16 << 20)); "
        "driver.get(sys.argv[2]); driver.put(sys.argv[2]); driver.remove(sys.argv[2])"
    )
    counts = []
    for id in ("first", "second"):
        log = tmp_path / id
        command = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", str(log)]
        subprocess.run([*command, sys.executable, "-c", code, str(root), id], check=True)
        counts.append(sum("execve" in line and "= 0" in line for line in log.read_text().splitlines()))
    first, second = counts
    assert first > second == 1, counts  # the interpreter; the first of a size runs mke2fs for the template


def test_21_the_owner_is_what_was_asked(root: Path, union: UnionProtocol) -> None:
    for number, owner in enumerate([(0, 0), (100000, 100000), (1, 2)]):
        driver = Driver(root, union, owner=owner)
        for name, limit in (("plain", None), ("limited", LIMIT)):
            driver.create(f"{name}-{number}", limit=limit)
            driver.create(f"{name}-child-{number}", f"{name}-{number}", limit=limit)
            for id in (f"{name}-{number}", f"{name}-child-{number}"):
                with driver.mounted(id) as path:
                    status = path.stat()
                    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (*owner, 0o755)
    with pytest.raises(InvalidArgument):
        Driver(root, union, owner=(-1, 0))


@pytest.mark.parametrize("limit", [None, LIMIT], ids=["plain", "limited"])
def test_22_archives_stay_in_their_layer(
    driver: Driver, tmp_path: Path, root: Path, limit: Limit | None
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    driver.create("base")
    (driver.get("base") / "link").symlink_to(tmp_path)
    attacks: list[list[tuple[str, str | bytes]]] = [
        [("../../../../../../canary", b"dead")],
        [("link", str(tmp_path)), ("link/canary", b"dead")],
        [(str(canary), b"dead")],
        [("link/.wh.canary", b"")],
    ]
    for number, entries in enumerate(attacks):
        id = f"child-{number}"
        driver.create(id, "base", limit=limit)
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for name, content in entries:
                member = tarfile.TarInfo()
                member.name = name
                if isinstance(content, str):
                    member.type, member.linkname = tarfile.SYMTYPE, content
                    tar.addfile(member)
                else:
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        raw.seek(0)
        try:
            driver.apply_diff(id, raw)
        except InvalidArgument:
            assert driver.changes(id) == []
        assert canary.read_text() == "alive"


def test_23_a_parent_cannot_be_removed(driver: Driver) -> None:
    driver.create("base")
    driver.create("child", "base", limit=LIMIT)
    with pytest.raises(Busy, match="child"):
        driver.remove("base")
    assert driver.exists("base")
    driver.get("child")
    face = aufslimit.init(driver.root, union="overlay")
    with pytest.raises(Busy, match="child"):
        face.remove("base")


def test_24_migrate_gives_up_what_it_mounts(driver: Driver, tmp_path: Path, root: Path) -> None:
    old = tmp_path / "old"
    image = old / "graph" / ("a" * 64)
    (image / "layer").mkdir(parents=True)
    (image / "json").write_text(json.dumps({"id": "a" * 64}))
    for name in ("b", "c"):
        container = old / "containers" / (name * 64)
        (container / "rw").mkdir(parents=True)
        (container / "config.json").write_text(json.dumps({"Image": "a" * 64}))
    driver.migrate(old, lambda path: (Path(path) / "stub").touch())
    for id in driver.ids():
        state = driver.state(id)
        assert (state.mounted, state.holds, state.processes) == (False, 0, 0)
    assert scratch.mounts_below(root) == []
