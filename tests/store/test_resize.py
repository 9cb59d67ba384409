"""Limits that cannot be had by growing: less, the first, none. The content moves, or nothing happens."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit import Busy, Limit, OutOfSpace, Store
from layerlimit.linux.xattr import set_xattr

MIB = 1 << 20

pytestmark = pytest.mark.lane("root", "overlay", "loop")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root") as store:
        store.create("making")
        with store.mounted("making") as base:
            for name in ("deleted", "replaced", "changed"):
                (base / name).mkdir()
                (base / name / "old").write_text(name)
        store.commit("making", "base")
        yield store
        store.driver.cleanup()


def fill(root: Path) -> None:
    """Something of everything that a layer can hold."""
    (root / "deleted/old").unlink()
    (root / "deleted").rmdir()
    (root / "replaced/old").unlink()
    (root / "replaced").rmdir()
    (root / "replaced").mkdir(mode=0o751)  # opaque
    (root / "replaced/new").write_bytes(os.urandom(2 * MIB))
    os.link(root / "replaced/new", root / "changed/linked")
    set_xattr(os.fsencode(root / "changed/old"), b"user.colour", b"a=\0b")
    os.chmod(root / "changed/old", 0o4755)
    os.mkfifo(root / "fifo")
    os.symlink("../none", root / "link")
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    os.utime(root / "sparse", ns=(1, 1_234_567_890_123_456_789))
    os.chown(root, 7, 8)
    os.chmod(root, 0o710)


def fills_up_at(root: Path) -> int:
    """Bytes that can be written before ENOSPC."""
    written = 0
    with (root / "filler").open("wb", buffering=0) as file:
        while written < 256 * MIB:
            try:
                written += file.write(bytes(MIB))
            except OSError as error:
                return written if error.errno == errno.ENOSPC else -2
    return -1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Limit(64 * MIB), Limit(16 * MIB)),
        (Limit(64 * MIB, 500), Limit(64 * MIB, 50)),
        (Limit(16 * MIB), Limit(32 * MIB, 100)),
        (None, Limit(16 * MIB)),
        (Limit(16 * MIB), None),
    ],
    ids=["less", "fewer-inodes", "first-inodes", "the-first", "none"],
)
def test_content_moves(store: Store, before: Limit | None, after: Limit | None) -> None:
    info = store.create("web", "base", limit=before, labels={"a": "b"})
    with store.mounted("web") as root:
        fill(root)
        old = os.stat(root)
    content = store.driver.content_id(info.id)
    store.resize("web", after)
    again = store.stat("web")
    assert store.driver.content_id(again.id) == content
    assert store.limit("web") == after
    assert (again.labels, again.parent, again.created) == ({"a": "b"}, "base", info.created)
    assert store.capacity().promised == (after.bytes if after else 0)
    with store.mounted("web") as root:
        assert not (root / "deleted").exists()
        assert os.listdir(root / "replaced") == ["new"]
        assert (root / "changed/linked").samefile(root / "replaced/new")
        assert (root / "sparse").stat().st_blocks == 0
        new = os.stat(root)
        assert (new.st_mode, new.st_uid, new.st_gid, new.st_mtime_ns) == (
            *(old.st_mode, old.st_uid, old.st_gid, old.st_mtime_ns),
        )
        if after is not None and after.inodes != 50:
            assert after.bytes - 3 * MIB <= fills_up_at(root) <= after.bytes
        if after is None:
            assert fills_up_at(root) == -1
    store.gc()
    assert not store.driver.exists(info.id)
    assert list(store.check()) == []


@pytest.mark.parametrize("before", [Limit(32 * MIB), None], ids=["limited", "unlimited"])
def test_content_that_does_not_fit_stays(store: Store, before: Limit | None) -> None:
    info = store.create("web", "base", limit=before)
    with store.mounted("web") as root:
        (root / "big").write_bytes(os.urandom(12 * MIB))
    content = store.driver.content_id(info.id)
    with pytest.raises(OutOfSpace):
        store.resize("web", Limit(8 * MIB))
    assert store.stat("web").id == info.id
    assert (store.limit("web"), store.driver.content_id(info.id)) == (before, content)
    assert store.driver.ids() == sorted([info.id, store.stat("base").id])
    assert list(store.check()) == []


@pytest.mark.parametrize("limit", [Limit(32 * MIB), None], ids=["limited", "unlimited"])
def test_one_that_an_engine_has_mounted(store: Store, tmp_path: Path, limit: Limit | None) -> None:
    """Its files would be left behind; the engine's own mount is all that shows that it is used."""
    store.create("web", "base", limit=limit)
    (mount,) = store.mounts("web")
    target = tmp_path / "engine"
    target.mkdir()
    subprocess.run(
        ["mount", "-t", mount.type, "-o", ",".join(mount.options), mount.source, target], check=True
    )
    try:
        with pytest.raises(Busy, match="is kept mounted by process"):
            store.resize("web", Limit(16 * MIB))
        (target / "written").write_text("while it was refused")
    finally:
        subprocess.run(["umount", target], check=True)
    store.resize("web", Limit(16 * MIB))
    with store.mounted("web") as root:
        assert (root / "written").read_text() == "while it was refused"


def test_one_that_is_held(store: Store) -> None:
    store.create("web", "base", limit=Limit(32 * MIB))
    store.mount("web")
    with pytest.raises(Busy, match="kept mounted by a hold"):
        store.resize("web", Limit(16 * MIB))
    store.umount("web")
    store.resize("web", Limit(16 * MIB))


def test_no_limit_for_one_without(store: Store) -> None:
    info = store.create("web", "base")
    store.resize("web", None)
    assert store.stat("web").id == info.id
