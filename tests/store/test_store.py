"""What the store itself does, from Python; the command's tests hold the rest."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerlimit import AlreadyExists, Busy, InvalidArgument, Limit, NotFound, OutOfSpace, Policy, Store
from layerlimit.archive.docker_archive import DockerArchive
from layerlimit.linux.statx import is_mount_point
from layerlimit.store import Gauge, Info, Kind
from tests.archive.images import docker_archive, layer_tar, sha256

MIB = 1 << 20
LOWER = layer_tar({"etc/": b"", "etc/gone": b"gone", "etc/kept": b"kept"})
UPPER = layer_tar({"etc/": b"", "etc/.wh.gone": b"", "new": b"new"})

pytestmark = pytest.mark.lane("overlay", "loop")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root") as store:
        yield store
        store.driver.cleanup()


def test_a_tar_over_a_parent_keeps_its_deletions(store: Store) -> None:
    store.import_tar("base", io.BytesIO(LOWER))
    info = store.import_tar("app", io.BytesIO(UPPER), parent="base")
    assert (info.kind, info.parent, info.diff_id) == (Kind.COMMITTED, "base", sha256(UPPER))
    assert [str(change) for change in store.changes("app")] == ["C /etc", "D /etc/gone", "A /new"]
    with store.mounted("app") as path:
        assert sorted(each.name for each in (path / "etc").iterdir()) == ["kept"]
    with pytest.raises(InvalidArgument):
        store.import_tar("two", io.BytesIO(LOWER), io.BytesIO(UPPER), parent="base")


def test_several_tars_make_one_layer(store: Store) -> None:
    done: list[str] = []
    info = store.import_tar(
        "base", io.BytesIO(LOWER), io.BytesIO(UPPER), told=lambda applied: done.append(applied.diff_id)
    )
    assert info.diff_id is None
    assert done == [sha256(LOWER), sha256(UPPER)]
    assert [change.path for change in store.changes("base")] == ["/etc", "/etc/kept", "/new"]


def test_an_image(store: Store, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_archive([LOWER, UPPER], tags=["web:1"]))
    with DockerArchive(tmp_path / "image.tar", "web:1") as image:
        info = store.import_image("base", image, labels={"from": "web:1"})
    assert info.labels == {"from": "web:1"}
    assert [change.path for change in store.changes("base")] == ["/etc", "/etc/kept", "/new"]


def test_a_failed_import_leaves_nothing(store: Store) -> None:
    with pytest.raises(OutOfSpace):
        store.import_tar("my base", io.BytesIO(layer_tar({"x": bytes(8 * MIB)})), limit=Limit(4 * MIB))
    assert store.driver.ids() == []
    with store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM trash").fetchone()[0] == 0
    assert store.capacity().promised == 0


def test_a_reaper_leaves_an_import_alone_that_ends_while_it_looks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had seen the id in the trash, and gets its lock when the import is through."""
    queued: list[str] = []

    def told(_: object) -> None:
        queued.extend(store.reaper._queued())
        assert store.gc() == []

    info = store.import_tar("base", io.BytesIO(LOWER), told=told)
    assert queued == [info.id]
    monkeypatch.setattr(store.reaper, "_queued", lambda: queued)
    assert store.reaper.run() == []
    assert [change.path for change in store.changes("base")] == ["/etc", "/etc/gone", "/etc/kept"]


def test_rm_with_force_unmounts_but_takes_no_parent(store: Store) -> None:
    store.import_tar("base", io.BytesIO(LOWER))
    store.create("web", "base", limit=Limit(4 * MIB))
    path = store.mount("web")
    store.mount("web")
    store.mount("web", read_only=True)
    base = store.mount("base")
    with pytest.raises(Busy) as caught:
        store.rm("base", force=True)
    assert caught.value.code == "layer.has_children"
    assert is_mount_point(base)
    with pytest.raises(Busy), (path / "file").open("w"):
        store.rm("web", force=True)
    assert store.exists("web")
    store.rm("web", force=True)
    assert not is_mount_point(path)
    store.rm("base", force=True)
    assert store.gc() == []
    assert store.driver.ids() == []


def test_rm_of_a_layer_in_use_by_a_process_is_busy(store: Store) -> None:
    store.create("web")
    with store.mounted("web"):
        for force in (False, True):
            with pytest.raises(Busy, match="running process"):
                store.rm("web", force=force)
    store.rm("web")


def test_labels_are_replaced_or_updated(store: Store) -> None:
    store.create("web", labels={"a": "1", "b": "2", "empty": ""})
    assert store.stat("web").labels == {"a": "1", "b": "2"}
    assert store.update("web", {"a": "3", "ignored": "x"}, only=["a", "b"]).labels == {"a": "3"}
    assert store.update("web", {"c": "4"}).labels == {"c": "4"}
    for bad in ({"k": "v" * 4096}, {"": "v"}, {"k": "\udcff"}, {"\udcff": "v"}):
        with pytest.raises(InvalidArgument):
            store.update("web", bad)


def test_chain_and_children_by_name(store: Store) -> None:
    store.create("0")
    store.commit("0", "1")
    for number in range(2, 6):
        store.create("new", str(number - 1))
        store.commit("new", str(number))
    store.create("top", "3")
    assert store.chain("5") == ["4", "3", "2", "1"]
    assert store.children("3") == ["4", "top"]
    assert store.tree()["3"] == ["4", "top"]
    with pytest.raises(NotFound):
        store.chain("6")


def test_policy_is_shared_unless_given(store: Store) -> None:
    assert store.policy == Policy()
    store.configure(Policy(default_limit=8 * MIB))
    with Store(store.root) as other, Store(store.root, policy=Policy(floor=1 << 62)) as strict:
        other.create("a")
        assert other.limit("a") == Limit(8 * MIB)
        with pytest.raises(OutOfSpace, match="a "):
            strict.create("b")
    store.create("b", unlimited=True)
    assert store.limit("b") is None
    for bad in ({"overcommit": 0.0}, {"overcommit": float("inf")}, {"floor": -1}, {"default_limit": -1}):
        with pytest.raises(InvalidArgument):
            Policy(**bad)


def test_the_same_name_is_taken_once(store: Store) -> None:
    store.create("web")
    calls: list[Callable[[], object]] = [
        lambda: store.create("web"),
        lambda: store.import_tar("web", io.BytesIO(LOWER)),
        lambda: store.rename("web", "web"),
        lambda: store.commit("web", "web"),
    ]
    for call in calls:
        with pytest.raises(AlreadyExists):
            call()
    assert len(store.driver.ids()) == 1


def test_gauges_wait_for_nobody(store: Store) -> None:
    """Whoever works on a layer, even for long, does not keep the others from being measured."""
    store.create("mounted", limit=Limit(8 * MIB))
    store.create("many", limit=Limit(8 * MIB, inodes=100))
    store.create("plain")
    info = store.stat("mounted")
    with store.mounted("mounted") as path:
        (path / "file").write_bytes(b"x" * MIB)
        os.sync()
        with store.driver._locks.hold(info.id), store.reaper.owned(info.id):
            found: list[Gauge] = []
            scrape = threading.Thread(target=lambda: found.extend(store.gauges()), daemon=True)
            scrape.start()
            scrape.join(timeout=20)
            assert not scrape.is_alive()
    gauges = {each.name: each for each in found}
    mounted, many, plain = gauges["mounted"], gauges["many"], gauges["plain"]
    assert (mounted.id, mounted.kind, mounted.namespace) == (info.id, Kind.ACTIVE, "default")
    assert [each.mounted for each in (mounted, many, plain)] == [True, False, False]
    assert mounted.used_bytes is not None
    assert MIB <= mounted.used_bytes < 2 * MIB
    assert (mounted.limit_bytes, mounted.used_inodes, mounted.degraded) == (8 * MIB, 1, False)
    # How many inodes fit is known also where nobody asked for a number.
    assert mounted.limit_inodes is not None
    assert mounted.limit_inodes > 100
    assert (many.used_bytes, many.used_inodes, many.limit_inodes) == (0, 0, 100)
    assert (plain.limit_bytes, plain.used_bytes, plain.limit_inodes) == (None, None, None)


def test_gauges_of_what_changes_or_is_damaged_tell_nothing_false(store: Store) -> None:
    growing, damaged = (store.create(name, limit=Limit(8 * MIB)).id for name in ("growing", "damaged"))
    meta = store.root / "meta"
    (meta / growing).write_text(
        (meta / growing).read_text().replace('"growing": null', f'"growing": {{"bytes": {16 * MIB}}}')
    )
    (meta / damaged).write_text("{")
    gauges = {each.name: each for each in store.gauges()}
    assert (gauges["growing"].limit_bytes, gauges["growing"].used_bytes) == (8 * MIB, None)
    assert (gauges["damaged"].limit_bytes, gauges["damaged"].used_bytes) == (None, None)


@pytest.fixture
def committed(store: Store) -> Info:
    """A layer that an engine wrote to, and that was committed without detaching it."""
    store.create("base")
    store.commit("base", "below")
    store.create("web", "below", limit=Limit(8 * MIB))
    (mount,) = store.mounts("web")
    upper = next(option for option in mount.options if option.startswith("upperdir="))
    Path(upper.removeprefix("upperdir="), "file").write_text("written")
    return store.commit("web", "image", detach=False)


def is_attached(store: Store, id: str) -> bool:
    return is_mount_point(store.root / "img" / id)


def test_a_commit_can_leave_the_detaching_to_the_reaper(store: Store, committed: Info) -> None:
    assert (committed.kind, committed.used_inodes) == (Kind.COMMITTED, 1)
    assert is_attached(store, committed.id)
    assert store.reaper.run(everywhere=False) == []
    assert not is_attached(store, committed.id)
    assert list(store.check()) == []
    with store.mounted("image") as path:
        assert (path / "file").read_text() == "written"
    store.reaper.run(everywhere=False)


def test_a_detaching_that_was_not_done_is_done_by_the_next_opening(store: Store, committed: Info) -> None:
    Store(store.root).close()
    assert not is_attached(store, committed.id)


def test_a_detaching_to_come_hinders_no_child(store: Store, committed: Info) -> None:
    """It stays attached as long as its child is; and nobody can write to it any more."""
    store.create("child", "image", limit=Limit(8 * MIB))
    store.mounts("child")
    assert store.reaper.run(everywhere=False) == []
    assert is_attached(store, committed.id)
    with pytest.raises(OSError, match="Read-only"):
        (store.root / "diff" / committed.id / "late").touch()
    store.driver.release(store.stat("child").id)
    assert not is_attached(store, committed.id)


def test_a_detaching_to_come_hinders_no_removal(store: Store, committed: Info) -> None:
    store.rm("image")
    assert store.gc() == []
    assert not store.driver.exists(committed.id)
    with store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM detaching").fetchone()[0] == 0


def test_a_commit_of_what_is_held_is_busy(store: Store) -> None:
    store.create("web", limit=Limit(8 * MIB))
    with store.mounted("web"), pytest.raises(Busy):
        store.commit("web", "image", detach=False)
