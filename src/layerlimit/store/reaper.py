"""Deleting what no entry names: after a removal, after a crash, and when asked. It is one function.

Four things are found: ids in ``trash``, whose entries were removed or whose import died; ids in
``resizing``, whose resize died; ids in ``detaching``, whose commit left that for later; and driver layers
that never got an entry because their creator died. The last are deleted when they hold nothing; one that
holds data is moved to ``lost/`` and reported. A layer that
somebody is working on is locked, and skipped.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from layerlimit.driver import Driver
from layerlimit.driver.locks import Locks
from layerlimit.errors import Error, NotFound, from_os_error
from layerlimit.store.database import Database
from layerlimit.store.reserve import Reserve

_ID = re.compile(r"s[a-z2-7]{8}")


def store_locks(root: Path) -> Locks:
    """The locks on the layers of a store: somebody works on what is locked."""
    path = root / "store.lock"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise from_os_error(error, f"open {path}") from error
    return Locks(path)


class Reaper:
    """Clean-up for one root; any number may run at once."""

    def __init__(self, driver: Driver, database: Database, reserve: Reserve) -> None:
        self._driver = driver
        self._database = database
        self._reserve = reserve
        self._locks = store_locks(driver.root)

    @contextlib.contextmanager
    def owned(self, id: str) -> Iterator[str]:
        """Work on a layer whose row may be about to appear, change or vanish; others wait, or skip it."""
        with self._locks.hold(id):
            yield id

    def run(self, *, everywhere: bool = True) -> list[str]:
        """Delete everything unreferenced that nobody works on; sentences about what was notable.

        Not ``everywhere`` is what was put into the trash; layers without a row take a look at all layers.
        """
        notes = self._empty_trash()
        for id in self._listed("resizing"):
            with self._locks.attempt(id) as held:
                if held is not None:
                    notes.extend(self._settle_later(id))
        for id in self._listed("detaching"):
            notes.extend(self._detach(id))
        for id in self._orphans() if everywhere else ():
            with self._locks.attempt(id) as held:
                if held is not None and self._is_orphan(id):
                    notes.extend(self._adopt_or_delete(id))
        self._reserve.restock()
        return notes

    def waiting(self) -> int:
        """How many removed layers are yet to be deleted."""
        with self._database.reading() as db:
            (count,) = db.execute("SELECT count(*) FROM trash").fetchone()
        return int(count)

    def _queued(self) -> list[str]:
        """Trashed ids, descendants before what they stand on."""
        with self._database.reading() as db:
            ids = [id for (id,) in db.execute("SELECT id FROM trash")]
        depth = {}
        for id in ids:
            depth[id] = 0
            with contextlib.suppress(Error):
                depth[id] = len(self._driver.chain(id))
        return sorted(ids, key=lambda id: -depth[id])

    def take_back(self, id: str) -> None:
        """Delete a layer that got no row. An interrupt that came after the transaction finds one.

        It is trash first: while the database cannot be written to, nobody knows what it says of the layer.
        The caller has its lock.
        """
        with self._database.writing() as db:
            if db.execute("SELECT 1 FROM entry WHERE id = ?", (id,)).fetchone() is not None:
                return
            db.execute("INSERT OR IGNORE INTO trash VALUES (?)", (id,))
        self._delete(id)
        self._forget([id])

    def _listed(self, table: str) -> list[str]:
        with self._database.reading() as db:
            return [id for (id,) in db.execute(f"SELECT id FROM {table}")]

    def _detach(self, id: str) -> list[str]:
        """Take back what an engine was handed out of a layer that is committed by now.

        Without the lock on the layer: it is written to no more, whoever works on it may go on.
        """
        try:
            with contextlib.suppress(NotFound):  # removed since
                self._driver.release(id)
        except Error as error:
            return [f"{id} is committed but cannot be detached yet: {error.message}"]
        with self._database.writing() as db:
            db.execute("DELETE FROM detaching WHERE id = ?", (id,))
        return []

    def _settle_later(self, id: str) -> list[str]:
        try:
            self.settle(id)
        except Error as error:
            return [f"{id} was about to grow and cannot be settled yet: {error.message}"]
        return []

    def settle(self, id: str) -> None:
        """Bring a growth to its end and record what limit it came to; the caller has the layer's lock."""
        limit = None
        with contextlib.suppress(NotFound):  # removed since
            if any(code == "resize.unfinished" for code, _ in self._driver.inspect_image(id)):
                with self._driver.mounted(id):  # which finishes it
                    pass
            limit = self._driver.limit(id)
        with self._database.writing() as db:
            db.execute(
                "UPDATE entry SET promised = ?1 WHERE id = ?2 AND promised <> ?1",
                (limit.bytes if limit else 0, id),
            )
            db.execute("DELETE FROM resizing WHERE id = ?", (id,))

    def _empty_trash(self) -> list[str]:
        notes = []
        deleted = []
        for id in self._queued():
            with self._locks.attempt(id) as held:
                if held is not None and self._is_trash(id):
                    try:
                        self._delete(id)
                        deleted.append(id)
                    except Error as error:
                        notes.append(f"{id} is removed but cannot be deleted yet: {error.message}")
        try:
            self._forget(deleted)
        except Error as error:
            notes.append(f"{', '.join(deleted)} cannot be taken out of the trash yet: {error.message}")
        return notes

    def _is_trash(self, id: str) -> bool:
        """Not an import that came to its end after we looked, or another reaper's work."""
        with self._database.reading() as db:
            return db.execute("SELECT 1 FROM trash WHERE id = ?", (id,)).fetchone() is not None

    def _delete(self, id: str) -> None:
        with contextlib.suppress(NotFound):
            self._reserve.through(lambda: self._driver.remove(id), frees=True)

    def _forget(self, ids: list[str]) -> None:
        """Take layers that are deleted out of the trash: in one transaction, as each waits for the disk."""

        def forget() -> None:
            with self._database.writing() as db:
                db.executemany("DELETE FROM trash WHERE id = ?", [(id,) for id in ids])

        if ids:
            self._reserve.through(forget, frees=True)

    def _orphans(self) -> set[str]:
        """Layers that a store made and that have no row; those another program made are not ours."""
        made = {id for id in self._driver.ids() if _ID.fullmatch(id)}
        with self._database.reading() as db:
            named = {id for (id,) in db.execute("SELECT id FROM entry UNION SELECT id FROM trash")}
        return made - named

    def _is_orphan(self, id: str) -> bool:
        """Whether that is still so, under the layer's lock."""
        with self._database.reading() as db:
            query = "SELECT 1 FROM entry WHERE id = ?1 UNION SELECT 1 FROM trash WHERE id = ?1"
            return db.execute(query, (id,)).fetchone() is None and self._driver.exists(id)

    def _adopt_or_delete(self, id: str) -> list[str]:
        try:
            if self._driver.is_empty(id):
                self._driver.remove(id)
                return []
            kept = self._driver.lose(id)
        except Error as error:
            return [f"{id} has no entry and cannot be cleaned up: {error.message}"]
        return [f"{id} had no entry but holds data; it is kept in {kept}"]
