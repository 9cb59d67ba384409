"""Every operation of a store, with what is there before it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from layerlimit import Driver, Limit
from layerlimit.store import Store
from layerlimit.store.rows import new_id
from tests.store.crash import Case
from tests.store.victim import LOWER, MIB

SMALL = 8 * MIB
LARGE = 16 * MIB


def layers(*names: str) -> Callable[[Store], None]:
    """Make these layers of :func:`make`."""

    def prepare(store: Store) -> None:
        for name in names:
            make(store, name)

    return prepare


def make(store: Store, name: str) -> None:
    """One of the layers that cases are made of, with its ancestors and a file of its own; once."""
    if store.exists(name):
        return
    if name == "base":
        store.import_tar("base", io.BytesIO(LOWER))
        return
    parent, size, committed = {
        "plain": ("base", 0, False),
        "web": ("base", SMALL, False),  # limited
        "lim": ("base", SMALL, True),  # limited and a parent
        "wide": ("base", LARGE, False),
        "heir": ("lim", SMALL, False),
        "doomed": ("lim", SMALL, False),
    }[name]
    make(store, parent)
    new = f"{name} draft" if committed else name
    store.create(new, parent, limit=Limit(size) if size else None, labels={"of": name})
    with store.mounted(new) as path:
        (path / name).write_text(name)
    if committed:
        store.commit(new, name)


def mounted(name: str) -> Callable[[Store], None]:
    def prepare(store: Store) -> None:
        make(store, name)
        store.mount(name)

    return prepare


def attached(name: str) -> Callable[[Store], None]:
    def prepare(store: Store) -> None:
        make(store, name)
        store.mounts(name)

    return prepare


def left_over(store: Store) -> None:
    """What a dead process leaves: a removed layer that is not deleted, and one that never got its row."""
    layers("web", "doomed")(store)
    pid = os.fork()
    if pid == 0:
        try:
            dying = Store(store.root)
            dying.rm("doomed")
            dying.driver.create(new_id(), dying.stat("base").id)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def nothing(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)


def root_of_a_driver(root: Path) -> None:
    driver = Driver(root)
    driver.create("base")
    driver.create("child", "base", limit=Limit(SMALL))


def crooked(root: Path) -> None:
    """Wrong in every way that a repair can put right without a rebuild."""
    Driver(root).create("stranger")
    (root / "diff/stray").mkdir()
    (root / "containers_quota/stray.ext4").write_bytes(b"x")
    with contextlib.closing(sqlite3.connect(root / "store.db")) as db:
        db.execute("UPDATE entry SET promised = promised + 1 WHERE name = 'heir'")
        db.execute("UPDATE entry SET parent = NULL WHERE name = 'heir'")
        db.execute("UPDATE total SET promised = 5")
        db.execute(
            "INSERT INTO entry (namespace, name, id, kind, created, updated)"
            " VALUES ('default', 'gone', 'x', 2, 0, 0)"
        )
        db.commit()


def damaged(root: Path) -> None:
    """A database whose table of trash is destroyed; the names can be read."""
    with contextlib.closing(sqlite3.connect(root / "store.db")) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'trash'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with (root / "store.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def unreadable(root: Path) -> None:
    """No name can be read from the database."""
    with (root / "store.db").open("r+b") as file:
        file.write(b"not a database")


def missing(root: Path) -> None:
    (root / "store.db").unlink()


CASES = [
    Case("open-fresh", ("open", "ROOT"), found=nothing),
    Case("open-driver-root", ("open", "ROOT"), found=root_of_a_driver),
    Case("open-left-over", ("open", "ROOT"), left_over),
    Case("create-plain", ("create", "new", "base", 0), layers("base")),
    Case("create-limited", ("create", "new", "base", SMALL), layers("base")),
    Case("create-heir", ("create", "new", "lim", SMALL), layers("lim")),
    Case("view", ("view", "new", "lim"), layers("lim")),
    Case("import-tar", ("import_tar", "new", SMALL)),
    Case("import-over-parent", ("import_over", "new", "lim", 0), layers("lim")),
    Case("import-image", ("import_image", "new", "ARCHIVE")),
    Case("commit-limited", ("commit", "web", "new", True), layers("web"), order=("fsync|syncfs", "pwrite64")),
    Case("commit-plain", ("commit", "plain", "new", True), layers("plain"), order=("syncfs", "pwrite64")),
    Case("commit-unsynced", ("commit", "heir", "new", False), layers("heir")),
    Case("commit-attached", ("commit_attached", "heir", "new"), attached("heir")),
    Case("rm", ("rm", "heir"), layers("heir")),
    Case("rm-and-reap", ("rm_and_reap", "heir"), layers("heir")),
    Case("gc", ("gc",), layers("doomed")),
    Case("resize", ("resize", "web", LARGE), layers("web")),
    Case("resize-mounted", ("resize", "web", LARGE), mounted("web")),
    Case("resize-less", ("resize", "wide", SMALL), layers("wide")),
    Case("resize-first", ("resize", "plain", SMALL), layers("plain")),
    Case("resize-none", ("resize", "heir", 0), layers("heir")),
    Case("rename", ("rename", "lim", "new"), layers("heir")),
    Case("update", ("update", "web"), layers("web")),
    Case("configure", ("configure",)),
    Case("mount", ("mount", "heir"), layers("heir")),
    Case("mount-committed", ("mount", "lim"), layers("lim")),
    Case("mounts", ("mounts", "heir"), layers("heir")),
    Case("umount", ("umount", "heir"), mounted("heir")),
    Case("apply-plain", ("apply", "plain"), layers("plain")),
    Case("apply-limited", ("apply", "heir"), layers("heir")),
    Case("repair", ("repair", "ROOT"), layers("heir"), damage=crooked),
    Case("rebuild-damaged", ("repair", "ROOT"), layers("heir"), damage=damaged),
    Case("rebuild-unreadable", ("repair", "ROOT"), layers("heir"), damage=unreadable),
    Case("rebuild-missing", ("repair", "ROOT"), layers("heir"), damage=missing),
]
BY_NAME = {case.name: case for case in CASES}
