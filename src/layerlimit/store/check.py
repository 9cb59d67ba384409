"""Comparing what the store says with what is there, and putting right what can be derived.

A finding has a stable code, what it is about, and one sentence. Repair re-derives from what is left: the
database from the driver's files, promises from limits, a file system from its journal. It deletes nothing
that holds user data unless it is forced to; what it does not recognise moves to ``lost/``.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerlimit.driver import Driver
from layerlimit.driver.layout import is_id
from layerlimit.errors import Error
from layerlimit.linux import mountinfo
from layerlimit.store.database import Database
from layerlimit.store.loops import attached_below, holders
from layerlimit.store.opening import take_in


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` is stable; ``subject`` a name, an id or a path; ``repaired``: it is put right now."""

    code: str
    subject: str
    message: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    name: str
    parent: str
    promised: int
    content: str


class Check:
    """One run over one root. Reads everything, changes only with ``repair``; ``quick`` skips file content."""

    def __init__(
        self,
        driver: Driver,
        database: Database,
        *,
        repair: bool = False,
        force: bool = False,
        quick: bool = False,
    ) -> None:
        self._driver = driver
        self._database = database
        self._repair = repair
        self._force = force
        self._quick = quick

    def run(self) -> Iterator[Finding]:
        """Every finding, as it is found."""
        yield from self._damage()
        ids = set(self._driver.ids())
        rows = self._rows()
        for row in rows:
            if row.id in ids:
                yield from self._entry(row)
            else:
                yield self._missing_layer(row)
        yield from self._unnamed(ids - {row.id for row in rows})
        yield from self._total()
        yield from self._strays(ids)
        yield from self._mounts(ids)
        yield from self._loops()

    # -- the database ------------------------------------------------------------------------------

    def _damage(self) -> Iterator[Finding]:
        with self._database.reading() as db:
            for (line,) in db.execute("PRAGMA quick_check"):
                if line != "ok":
                    yield Finding("store.damaged", "store.db", f"the database is damaged: {line}")

    def _rows(self) -> list[_Row]:
        with self._database.reading() as db:
            found = db.execute("SELECT id, name, parent, promised, content_id FROM entry ORDER BY name")
            return [
                _Row(id, name, parent or "", number, content or "")
                for id, name, parent, number, content in found
            ]

    def _missing_layer(self, row: _Row) -> Finding:
        """A name without a layer holds no data; but a parent is what its children's chains need."""
        repaired = False
        if self._repair:
            with self._database.writing() as db, contextlib.suppress(sqlite3.IntegrityError):
                if self._force:
                    db.execute("UPDATE entry SET parent = NULL WHERE parent = ?", (row.id,))
                db.execute("DELETE FROM entry WHERE id = ?", (row.id,))
                repaired = True
        return Finding(
            "layer.missing", row.name, f"layer {row.name!r} is named, but {row.id} is gone", repaired
        )

    def _unnamed(self, ids: set[str]) -> Iterator[Finding]:
        with self._database.reading() as db:
            trash = {id for (id,) in db.execute("SELECT id FROM trash")}
        unnamed = sorted(ids - trash)
        if unnamed and self._repair:
            take_in(self._driver, self._database)
        for id in unnamed:
            message = f"layer {id} has no name" + (f"; it is now called {id!r}" if self._repair else "")
            yield Finding("layer.unnamed", id, message, self._repair)

    def _total(self) -> Iterator[Finding]:
        with self._database.reading() as db:
            (total,) = db.execute("SELECT promised FROM total").fetchone()
            (real,) = db.execute("SELECT coalesce(sum(promised), 0) FROM entry").fetchone()
        if total == real:
            return
        if self._repair:
            with self._database.writing() as db:
                db.execute("UPDATE total SET promised = (SELECT coalesce(sum(promised), 0) FROM entry)")
        message = f"limits promise {real} bytes together, the account says {total}"
        yield Finding("total.mismatch", "store.db", message, self._repair)

    # -- one entry ---------------------------------------------------------------------------------

    def _entry(self, row: _Row) -> Iterator[Finding]:
        try:
            yield from self._parent(row)
            yield from self._limit(row)
            yield from self._content(row)
            yield from self._health(row)
        except Error as error:
            yield Finding(error.code, row.name, error.message)

    def _parent(self, row: _Row) -> Iterator[Finding]:
        chain = self._driver.chain(row.id)
        parent = chain[0] if chain else ""
        for ancestor in chain:
            if not self._driver.exists(ancestor):
                yield Finding(
                    "chain.broken", row.name, f"layer {row.name!r} stands on {ancestor}, which is gone"
                )
        if parent == row.parent:
            return
        repaired = False
        if self._repair:
            with self._database.writing() as db, contextlib.suppress(sqlite3.IntegrityError):
                db.execute("UPDATE entry SET parent = ? WHERE id = ?", (parent or None, row.id))
                repaired = True
        message = (
            f"layer {row.name!r} stands on {parent or 'nothing'}, the database says {row.parent or 'nothing'}"
        )
        yield Finding("parent.mismatch", row.name, message, repaired)

    def _limit(self, row: _Row) -> Iterator[Finding]:
        limit = self._driver.limit(row.id)
        size = limit.bytes if limit else 0
        if size != row.promised:
            if self._repair:
                with self._database.writing() as db:
                    db.execute("UPDATE entry SET promised = ? WHERE id = ?", (size, row.id))
            message = f"layer {row.name!r} has a limit of {size} bytes, the account says {row.promised}"
            yield Finding("promised.mismatch", row.name, message, self._repair)
        for code, message in self._driver.inspect_image(row.id, deep=not self._quick):
            yield Finding(code, row.name, message, self._mended(row, code))

    def _mended(self, row: _Row, code: str) -> bool:
        """Mounting a layer finishes an interrupted resize and replays a journal."""
        if not self._repair or code not in ("image.unclean", "resize.unfinished", "image.damaged"):
            return False
        try:
            with self._driver.mounted(row.id):
                return True
        except Error:
            return False

    def _content(self, row: _Row) -> Iterator[Finding]:
        if row.content and not self._quick and self._driver.content_id(row.id) != row.content:
            yield Finding(
                "content.mismatch",
                row.name,
                f"the content of layer {row.name!r} is not what was imported",
            )

    def _health(self, row: _Row) -> Iterator[Finding]:
        state = self._driver.state(row.id)
        if state.health.state == "degraded":
            yield Finding(
                "layer.degraded", row.name, f"layer {row.name!r} takes no writes: {state.health.why}"
            )
        if state.recovered:
            count = len(state.recovered)
            yield Finding(
                "layer.recovered", row.name, f"a repair put {count} files of {row.name!r} into lost+found"
            )

    # -- the root ----------------------------------------------------------------------------------

    def _strays(self, ids: set[str]) -> Iterator[Finding]:
        root = self._driver.root
        for directory, suffix in (("containers_quota", ".ext4"), ("diff", ""), ("meta", ""), ("work", "")):
            for path in sorted((root / directory).iterdir()):
                name = path.name.removesuffix(suffix)
                if is_id(name) and (name in ids or (root / "meta" / name).exists()):
                    continue  # a record without a chain is half of a layer: being made, or swept when opened
                moved = ""
                if self._repair:
                    moved = f"; it is now {self._driver.lose_path(path)}"
                yield Finding("stray", str(path), f"{path} belongs to no layer{moved}", self._repair)

    def _mounts(self, ids: set[str]) -> Iterator[Finding]:
        root = self._driver.root
        for entry in mountinfo.below(root, mountinfo.read()):
            path = Path(entry.mount_point)
            parts = path.relative_to(root).parts
            id = parts[1].removesuffix("@ro") if len(parts) == 2 else ""
            if parts[:1] and parts[0] in ("mnt", "diff", "img") and id in ids:
                if parts[0] == "mnt" and not self._driver.is_recorded(parts[1]):
                    yield self._unrecorded(id, path)
                continue
            if path != root:
                yield Finding("mount.foreign", str(path), f"{path} is mounted and belongs to no layer")

    def _unrecorded(self, id: str, path: Path) -> Finding:
        repaired = False
        if self._repair:
            with contextlib.suppress(Error):
                self._driver.put(id, read_only=path.name.endswith("@ro"))
                repaired = True
        return Finding(
            "mount.unrecorded", str(path), f"{path} is mounted, but nobody is recorded to hold it", repaired
        )

    def _loops(self) -> Iterator[Finding]:
        """Devices on our images that are not mounted where they belong."""
        root = self._driver.root
        for device in attached_below(root / "containers_quota"):
            image = device.image.name.removesuffix(".ext4")
            if device.deleted:
                message = f"{device.path} is attached to {device.image}, which was deleted"
                yield Finding("loop.deleted", str(device.path), message + _held_by(device.path))
            elif not os.path.ismount(root / "img" / image):
                message = f"{device.path} keeps the image of {image} attached, but it is not mounted here"
                yield Finding("loop.kept", str(device.path), message + _held_by(device.path))


def _held_by(device: Path) -> str:
    found = holders(device)
    return f"; it is mounted in the namespace of {', '.join(found)}" if found else ""
