"""Limits that cannot be had by growing: less, the first, none. The content moves, or nothing happens."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit import Busy, Limit, OutOfSpace, Store
from layerlimit.linux.xattr import get_xattr, list_xattrs, set_xattr

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


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as its attribute has it: version 2, then tag, permissions and id of each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ANY = 0xFFFFFFFF
ACL = acl((1, 7, ANY), (2, 5, 1234), (4, 5, ANY), (0x10, 5, ANY), (0x20, 0, ANY))
NET_BIND = 1 << 10
ATTRIBUTES = {
    "capable": (b"security.capability", struct.pack("<IIIII", 0x2000001, NET_BIND, 0, 0, 0)),
    # Valid for the root of one user namespace alone: it must not come to be valid everywhere.
    "capable-in-namespace": (
        b"security.capability",
        struct.pack("<IIIIII", 0x3000001, NET_BIND, 0, 0, 0, 77000),
    ),
    "shared": (b"system.posix_acl_access", ACL),
    "trusted": (b"trusted.secret", b"\0\1"),
}


def tree(root: Path) -> dict[str, object]:
    """All there is to know of every file below, by path; of hard links, which are one."""
    first: dict[int, str] = {}
    found: dict[str, object] = {}
    for path in sorted((root, *root.rglob("*"))):
        status = path.lstat()
        name = str(path.relative_to(root))
        raw = os.fsencode(path)
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        found[name] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_mtime_ns),
            [(key, get_xattr(raw, key)) for key in sorted(list_xattrs(raw))],
            content,
            first.setdefault(status.st_ino, name) if not path.is_dir() else None,
        )
    return found


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
    os.mknod(root / "socket", stat.S_IFSOCK | 0o640)
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.link(root / "socket", root / "changed/socket")
    (root / "lost+found").mkdir()  # of that name, and no file system's
    (root / "lost+found/kept").write_text("kept")
    deep = root / "/".join("d" * 100)
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")
    os.link(deep / "leaf", root / "z-linked")
    for directory in (*deep.parents,)[:100]:
        os.utime(directory, ns=(1, 987_654_321_000_000_001))
    for name, (attribute, value) in ATTRIBUTES.items():
        (root / name).write_text(name)
        set_xattr(os.fsencode(root / name), attribute, value)
    set_xattr(os.fsencode(root / "replaced"), b"system.posix_acl_default", ACL)
    os.symlink("../none", root / "link")
    with (root / "sparse").open("wb") as file:
        file.truncate(100 * MIB)  # more than limits allow for
        file.seek(50 * MIB)
        file.write(b"in the middle")
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
        (Limit(64 * MIB, 500), Limit(64 * MIB, 150)),
        (Limit(16 * MIB), Limit(32 * MIB, 200)),
        (None, Limit(16 * MIB)),
        (Limit(16 * MIB), None),
    ],
    ids=["less", "fewer-inodes", "first-inodes", "the-first", "none"],
)
def test_content_moves(
    store: Store, before: Limit | None, after: Limit | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = store.create("web", "base", limit=before, labels={"a": "b"})
    with store.mounted("web") as root:
        fill(root)
        before_it = tree(root)
    content = store.driver.content_id(info.id)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # for archives
    store.resize("web", after)
    monkeypatch.undo()
    again = store.stat("web")
    assert store.driver.content_id(again.id) == content
    assert store.limit("web") == after
    assert (again.labels, again.parent, again.created) == ({"a": "b"}, "base", info.created)
    assert store.capacity().promised == (after.bytes if after else 0)
    with store.mounted("web") as root:
        assert tree(root) == before_it
        assert not (root / "deleted").exists()
        assert os.listdir(root / "replaced") == ["new"]
        assert (root / "changed/linked").samefile(root / "replaced/new")
        assert (root / "sparse").stat().st_blocks <= 16
        if after is not None and after.inodes != 150:
            assert after.bytes - 3 * MIB <= fills_up_at(root) <= after.bytes
        if after is None:
            assert fills_up_at(root) == -1
    store.gc()
    assert not store.driver.exists(info.id)
    assert list(store.check()) == []


@pytest.mark.parametrize("before", [Limit(32 * MIB), None], ids=["limited", "unlimited"])
def test_content_that_does_not_fit_stays(
    store: Store, before: Limit | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = store.create("web", "base", limit=before)
    with store.mounted("web") as root:
        (root / "big").write_bytes(os.urandom(12 * MIB))
        (root / "small").touch()
        (root / "smaller").touch()
    content = store.driver.content_id(info.id)
    # It is seen before anything is made.
    monkeypatch.setattr(store.driver, "create", None)
    with pytest.raises(OutOfSpace, match=r"'web' uses 12\S* MiB, more than 8 MiB") as caught:
        store.resize("web", Limit(8 * MIB))
    assert caught.value.code == "resize.content"
    with pytest.raises(OutOfSpace, match=r"'web' uses 3 inodes, more than 2"):
        store.resize("web", Limit(32 * MIB, 2))
    monkeypatch.undo()
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


def test_what_does_not_fit_after_all_is_taken_back(store: Store) -> None:
    """So many names that a small image has no inodes for them, with next to no bytes."""
    info = store.create("web", "base", limit=Limit(256 * MIB))
    with store.mounted("web") as root:
        for number in range(6000):
            os.mknod(root / str(number))
    content = store.driver.content_id(info.id)
    with pytest.raises(OutOfSpace):
        store.resize("web", Limit(8 * MIB))
    assert (store.stat("web").id, store.driver.content_id(info.id)) == (info.id, content)
    assert store.driver.ids() == sorted([info.id, store.stat("base").id])
    assert list(store.check()) == []
