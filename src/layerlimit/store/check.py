"""Comparing what the store says with what is there, and putting right what can be derived.

A finding has a stable code, what it is about, one sentence, and what a repair does about it. Repair
re-derives from what is left: the database from the driver's files, promises from limits, a file system from
its journal. It deletes nothing that holds user data unless it is forced to; what it does not recognise moves
to ``lost/``.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from layerlimit.driver import Driver
from layerlimit.driver.holds import Holds
from layerlimit.driver.layout import REMOVING, is_id
from layerlimit.errors import Error
from layerlimit.linux import mountinfo
from layerlimit.linux.statx import is_mount_point
from layerlimit.store.database import Database
from layerlimit.store.images import differences
from layerlimit.store.loops import Attached, attached_below, free, holders
from layerlimit.store.opening import take_in

#: What ``repair`` does about a finding of each code; about others a person has to do something.
REPAIRS: Final = {
    "store.missing": "rebuild it from the layers",
    "store.corrupt": "keep it in lost/ and rebuild it from the layers",
    "store.damaged": "keep it in lost/ and rebuild it from the layers",
    "layer.missing": "forget the name; with --force also when others stand on it",
    "layer.unnamed": "name it by its id",
    "parent.mismatch": "take the parent from the layer's chain",
    "promised.mismatch": "take the limit from the layer's record",
    "total.mismatch": "add the limits up again",
    "image.unclean": "mount it once, which replays its journal",
    "image.damaged": "mount it once, which runs e2fsck -p",
    "resize.unfinished": "mount it once, which finishes growing it",
    "layer.degraded": "mount it once when nobody uses it, which runs e2fsck -p",
    "layer.volatile": "with --force, delete the marker and trust what is there",
    "stray": "move it to lost/",
    "leftover": "finish the creation or removal that was interrupted",
    "hold.stale": "forget the hold",
    "mount.unrecorded": "unmount it",
    "loop.deleted": "detach it, unless it is mounted somewhere",
    "loop.kept": "detach it, unless it is mounted somewhere",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` is stable; ``subject`` a name, an id or a path; ``layer`` the name of the layer, if it is one.

    ``repair`` says what a repair does, or did (``repaired``: it is put right now); ``""``: nothing.
    """

    code: str
    subject: str
    message: str
    repaired: bool = False
    layer: str = ""

    @property
    def repair(self) -> str:
        """What a repair does about it, as a sentence without its subject; ``""`` when it can do nothing."""
        return REPAIRS.get(self.code, "")


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    name: str
    parent: str
    promised: int
    content: str


_MENDED_BY_A_MOUNT = ("image.unclean", "resize.unfinished", "image.damaged", "layer.degraded")


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
                for finding in self._entry(row):
                    yield replace(finding, layer=row.name)
            else:
                yield replace(self._missing_layer(row), layer=row.name)
        yield from self._unnamed(ids - {row.id for row in rows})
        yield from self._total()
        yield from self._strays(ids)
        yield from self._leftovers(ids)
        yield from self._stale_holds(ids)
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
            yield from self._files(row)
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
        if parent == row.parent or (parent and not self._driver.exists(parent)):
            return  # a parent that is gone has been said already
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
        # The image first: finishing its growth raises the limit that the account is compared with.
        failure = None
        try:
            for code, message in differences(self._driver.root, row.id):
                yield Finding(code, row.name, message)
            for code, message in self._driver.inspect_image(row.id, deep=not self._quick):
                yield Finding(code, row.name, message, self._mended(row, code))
        except Error as error:
            failure = error
        limit = self._driver.limit(row.id)
        size = limit.bytes if limit else 0
        if size != row.promised:
            if self._repair:
                with self._database.writing() as db:
                    db.execute("UPDATE entry SET promised = ? WHERE id = ?", (size, row.id))
            message = f"layer {row.name!r} has a limit of {size} bytes, the account says {row.promised}"
            yield Finding("promised.mismatch", row.name, message, self._repair)
        if failure is not None:
            raise failure

    def _mended(self, row: _Row, code: str) -> bool:
        """Mounting a layer finishes an interrupted resize, replays a journal, and heals a degraded image."""
        if not self._repair or code not in _MENDED_BY_A_MOUNT:
            return False
        try:
            with self._driver.mounted(row.id):
                return self._driver.state(row.id).health.state == "ok"
        except Error:
            return False

    def _files(self, row: _Row) -> Iterator[Finding]:
        """The directories of a layer without a limit; an image has its own."""
        if self._driver.limit(row.id) is not None:
            return
        root = self._driver.root
        if not (root / "diff" / row.id).is_dir():
            message = f"the content of layer {row.name!r} is gone: {root / 'diff' / row.id} is missing"
            yield Finding("layer.diff_missing", row.name, message)
        marker = root / "work" / row.id / "work/incompat/volatile"
        if marker.exists() and not self._driver.is_mounted(row.id):
            repaired = self._repair and self._force
            if repaired:
                marker.rmdir()
            message = f"layer {row.name!r} was last mounted volatile and may lack what was written to it"
            yield Finding("layer.volatile", row.name, message, repaired)

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
            message = f"layer {row.name!r} takes no writes: {state.health.why}"
            repaired = self._mended(row, "layer.degraded")
            yield Finding("layer.degraded", row.name, message, repaired)
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
                if name.endswith(REMOVING):
                    continue  # half-removed: see _leftovers
                if is_id(name) and (name in ids or (root / "meta" / name).exists()):
                    continue  # a record without a chain is half of a layer: being made, or swept when opened
                moved = ""
                if self._repair:
                    moved = f"; it is now {self._driver.lose_path(path)}"
                yield Finding("stray", str(path), f"{path} belongs to no layer{moved}", self._repair)

    def _leftovers(self, ids: set[str]) -> Iterator[Finding]:
        """What a dead process left half-made or half-removed; nobody works on it."""
        root = self._driver.root
        found = [
            root / "meta" / name for name in os.listdir(root / "meta") if is_id(name) and name not in ids
        ]
        for directory in ("mnt", "diff", "layers"):
            found += (path for path in (root / directory).iterdir() if path.name.endswith(REMOVING))
        if found and self._repair:
            self._driver.sweep()
        for path in found:
            repaired = self._repair and not os.path.lexists(path)
            yield Finding("leftover", str(path), f"{path} is half of a layer that is not there", repaired)

    def _stale_holds(self, ids: set[str]) -> Iterator[Finding]:
        """Recorded users of a mount that is not there. A base without a limit has no mount of its own."""
        root = self._driver.root
        holds = Holds(root / "holds")
        stale = [key for key in holds.known() if self._is_stale(key, holds, ids)]
        if stale and self._repair:
            self._driver.sweep()
        for key in stale:
            message = f"{root / 'mnt' / key} is recorded to be held, but it is not mounted"
            yield Finding("hold.stale", key, message, self._repair and not holds.count(key))

    def _is_stale(self, key: str, holds: Holds, ids: set[str]) -> bool:
        id = key.removesuffix("@ro")
        if id not in ids or not holds.count(key) or is_mount_point(self._driver.root / "mnt" / key):
            return False
        with contextlib.suppress(Error):
            plain = self._driver.limit(id) is None
            if key == id and not self._driver.chain(id):
                return not plain and not is_mount_point(self._driver.root / "diff" / id)
        return True

    def _mounts(self, ids: set[str]) -> Iterator[Finding]:
        root = self._driver.root
        for entry in mountinfo.below(root, mountinfo.read()):
            path = Path(entry.mount_point)
            parts = path.relative_to(root).parts
            id = parts[1].removesuffix("@ro") if len(parts) == 2 else ""
            if parts[:1] and parts[0] in ("mnt", "diff", "img") and id in ids:
                if parts[0] in ("mnt", "img") and not self._driver.is_recorded(parts[1]):
                    yield self._unrecorded(id, path)
                continue
            if path != root:
                yield Finding("mount.foreign", str(path), f"{path} is mounted and belongs to no layer")

    def _unrecorded(self, id: str, path: Path) -> Finding:
        repaired = False
        if self._repair:
            with contextlib.suppress(Error):
                if path.parent.name == "img":
                    self._driver.release(id)
                else:
                    self._driver.put(id, read_only=path.name.endswith("@ro"))
                repaired = not is_mount_point(path)
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
                yield self._kept("loop.deleted", device, message)
            elif not os.path.ismount(root / "img" / image):
                message = f"{device.path} keeps the image of {image} attached, but it is not mounted here"
                yield self._kept("loop.kept", device, message)

    def _kept(self, code: str, device: Attached, message: str) -> Finding:
        """With its holders in other mount namespaces; one that nobody has mounted is freed."""
        found = holders(device.path)
        if found:
            message += f"; it is mounted in the namespace of {', '.join(found)}"
        repaired = False
        if self._repair and not found:
            with contextlib.suppress(OSError):
                repaired = free(device)
        return Finding(code, str(device.path), message, repaired)
