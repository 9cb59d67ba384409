"""What the store itself does, from Python; the command's tests hold the rest."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerlimit import AlreadyExists, Busy, InvalidArgument, Limit, NotFound, OutOfSpace, Policy, Store
from layerlimit.archive.docker_archive import DockerArchive
from layerlimit.linux.statx import is_mount_point
from layerlimit.store import Kind
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


def test_a_reaper_leaves_an_import_alone_that_ends_while_it_looks(store: Store) -> None:
    """It had seen the id in the trash, and gets its lock when the import is through."""
    queued: list[str] = []

    def told(_: object) -> None:
        queued.extend(store.reaper._queued())
        assert store.gc() == []

    info = store.import_tar("base", io.BytesIO(LOWER), told=told)
    assert queued == [info.id]
    assert store.reaper._finish(info.id) == []
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
    with pytest.raises(InvalidArgument):
        store.update("web", {"k": "v" * 4096})


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
