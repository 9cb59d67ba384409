"""The behaviours that containerd's suite asks of a snapshotter, by calls over the socket."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from layerlimit.containerd.wire import snapshots_pb2 as wire
from tests.containerd.client import Client, Daemon, Refused, awaited, mount, unmount
from tests.scratch import mounts_below

pytestmark = pytest.mark.lane("root", "overlay", "loop")

NAMES = (
    "default/3/extract-463079508-eUuV sha256:9742",
    "a/b/../../..",
    "/abs/path",
    "ü\n\t\x1b[31m",
    "x" * 4096,
)


def refused(code: str, call: object, *arguments: object) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.code == code
    return caught.value.text


def test_life_of_layers(snapshots: Client, tmp_path: Path) -> None:
    at = tmp_path / "at"
    mount(snapshots.prepare("one"), at)
    assert at.stat().st_mode & 0o7777 == 0o755
    (at / "foo").write_text("foo")
    (at / "a/b").mkdir(parents=True)
    (at / "lib").mkdir()
    (at / "lib/hidden").write_text("hidden")
    unmount(at)
    snapshots.commit("below", "one")
    assert (snapshots.stat("below").kind, snapshots.stat("below").parent) == (wire.COMMITTED, "")
    refused("NOT_FOUND", snapshots.stat, "one")
    mount(snapshots.prepare("two", "below"), at)
    assert (at / "foo").read_text() == "foo"
    (at / "foo").write_text("changed")
    (at / "a/b").rmdir()
    os.chown(at / "a", 1, 1)
    (at / "lib/hidden").unlink()
    (at / "lib").rmdir()
    (at / "lib").mkdir()
    unmount(at)
    snapshots.commit("above", "two")
    assert snapshots.stat("above").parent == "below"
    mount(snapshots.view("seen", "above"), at)
    assert (at / "foo").read_text() == "changed"
    assert os.listdir(at / "lib") == []
    assert (at / "a").stat().st_uid == 1
    assert not (at / "a/b").exists()
    with pytest.raises(OSError, match="Read-only"):
        (at / "new").write_text("")
    unmount(at)
    assert "remove" in refused("FAILED_PRECONDITION", snapshots.remove, "below")
    for name in ("seen", "above", "below"):
        snapshots.remove(name)
    snapshots.cleanup()
    assert snapshots.names() == set()
    assert os.listdir(snapshots.daemon.root / "layers") == []


def test_a_key_is_taken_once(snapshots: Client) -> None:
    snapshots.layer("base")
    snapshots.prepare("a", "base")
    refused("ALREADY_EXISTS", snapshots.prepare, "a", "base")
    refused("ALREADY_EXISTS", snapshots.view, "a", "base")
    refused("ALREADY_EXISTS", snapshots.commit, "base", "a")
    for prepare in (snapshots.prepare, snapshots.view):
        snapshots.remove("a")
        prepare("a", "base")
    snapshots.remove("a")
    snapshots.prepare("a", "base")
    refused("FAILED_PRECONDITION", snapshots.remove, "base")


def test_what_is_refused(daemon: Daemon) -> None:
    snapshots = daemon.of()
    refused("NOT_FOUND", snapshots.prepare, "a", "missing")
    snapshots.layer("base")
    snapshots.prepare("active", "base")
    snapshots.view("view", "base")
    refused("INVALID_ARGUMENT", snapshots.prepare, "a", "active")
    refused("INVALID_ARGUMENT", snapshots.prepare, "")
    refused("INVALID_ARGUMENT", snapshots.prepare, "a\0b")
    refused("INVALID_ARGUMENT", snapshots.prepare_with, "a", "base", {"long": "x" * 4096})
    refused("FAILED_PRECONDITION", snapshots.mounts, "base")
    refused("FAILED_PRECONDITION", snapshots.commit, "b", "view")
    refused("FAILED_PRECONDITION", snapshots.commit, "b", "base")
    refused("NOT_FOUND", snapshots.commit, "b", "active", "missing")
    refused("FAILED_PRECONDITION", snapshots.commit, "b", "active", "view")
    for call in (snapshots.mounts, snapshots.stat, snapshots.usage, snapshots.remove):
        refused("NOT_FOUND", call, "missing")
    refused("NOT_FOUND", snapshots.commit, "b", "missing")
    refused("NOT_FOUND", snapshots.update, "missing", {})
    refused("INVALID_ARGUMENT", snapshots.update, "active", {}, "parent")
    refused("INVALID_ARGUMENT", snapshots.names, "name==")
    assert "layerlimit" in refused("INVALID_ARGUMENT", daemon.of("other").stat, "active")
    assert snapshots.names() == {"base", "active", "view"}


def test_labels(snapshots: Client) -> None:
    before = time.time_ns()
    snapshots.prepare_with("a", "", {"l1": "1", "empty": ""})
    found = snapshots.stat("a")
    assert found.created_at == found.updated_at
    assert before <= found.created_at.ToNanoseconds() <= time.time_ns()
    shown = dict(found.labels)
    shown.pop("layerlimit/limit.bytes", "")
    assert shown == {"l1": "1"}
    after = snapshots.update("a", {"l1": "1", "l2": "2", "l.3/x": "3"}, parent="other", kind=wire.COMMITTED)
    assert (after.parent, after.kind, after.created_at) == ("", wire.ACTIVE, found.created_at)
    assert dict(after.labels) == {"l1": "1", "l2": "2", "l.3/x": "3"}
    after = snapshots.update("a", {"l1": "new", "l4": "4"}, "labels.l1", "labels.l2")
    assert dict(after.labels) == {"l1": "new", "l.3/x": "3"}
    assert after.updated_at.ToNanoseconds() > found.updated_at.ToNanoseconds()
    assert dict(snapshots.update("a", {}, "labels.l.3/x").labels) == {"l1": "new"}
    assert dict(snapshots.update("a", {"only": "x"}, "labels").labels) == {"only": "x"}
    snapshots.commit("c", "a", labels={"l": "1"})
    assert dict(snapshots.stat("c").labels) == {"l": "1"}


def test_list_streams_and_filters(daemon: Daemon) -> None:
    snapshots = daemon.of()
    snapshots.layer("p")
    for number in range(101):
        snapshots.view(f"v{number}", "p", {"l": str(number)})
    blocks = list(snapshots.blocks())
    assert [len(block) for block in blocks] == [100, 2]
    for info in blocks[1]:
        assert snapshots.stat(info.name) == info
    assert snapshots.names("kind==committed") == {"p"}
    assert snapshots.names("labels.l==7,parent==p", "name==p") == {"v7", "p"}


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_are_no_files(snapshots: Client, name: str) -> None:
    snapshots.prepare(name)
    snapshots.mounts(name)
    assert snapshots.names() == {name}
    snapshots.remove(name)


def test_a_commit_is_detached_without_being_asked(daemon: Daemon, tmp_path: Path) -> None:
    """The call does not wait for it, and neither does anything that comes next."""
    small, at = daemon.of("small"), tmp_path / "at"
    mount(small.prepare("a"), at)
    (at / "file").write_text("written")
    unmount(at)
    small.commit("c", "a")
    mount(small.view("v", "c"), at)
    assert (at / "file").read_text() == "written"
    unmount(at)
    small.remove("v")
    awaited("the image to be detached", lambda: not mounts_below(daemon.root))


def test_usage(snapshots: Client, tmp_path: Path) -> None:
    at = tmp_path / "at"
    mount(snapshots.prepare("a"), at)
    (at / "data").write_bytes(bytes(4 << 20))
    os.sync()
    assert 4 << 20 <= snapshots.usage("a")[0] < 5 << 20
    unmount(at)
    snapshots.commit("c", "a")
    assert 4 << 20 <= snapshots.usage("c")[0] < 5 << 20
    snapshots.prepare("b", "c")
    assert snapshots.usage("b")[0] < 1 << 20


def test_names_of_the_daemon_share_nothing(daemon: Daemon) -> None:
    one, other = daemon.of(), daemon.of("small")
    one.prepare("same")
    other.prepare("same")
    other.remove("same")
    other.cleanup()
    assert (one.names(), other.names()) == ({"same"}, set())
    refused("NOT_FOUND", other.prepare, "child", "same")


def test_ids_are_mapped(daemon: Daemon) -> None:
    snapshots = daemon.of("small")
    uid, gid = "containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"
    snapshots.layer("base")
    found = snapshots.prepare_with("a", "base", {uid: "0:1000:500,500:9000:10", gid: "0:2000:500"})
    options = dict(option.partition("=")[::2] for option in found[0].options)
    assert (options["uidmap"], options["gidmap"]) == ("0:1000:500,500:9000:10", "0:2000:500")
    status = os.stat(options["upperdir"])
    assert (status.st_uid, status.st_gid) == (1000, 2000)
    for bad in (
        {uid: "0:0:1"},
        {uid: "1:0:1", gid: "0:0:1"},
        {uid: "0:0:0", gid: "0:0:1"},
        {uid: "x", gid: "0:0:1"},
    ):
        refused("INVALID_ARGUMENT", snapshots.prepare_with, "b", "base", bad)
    assert "b" not in snapshots.names()
