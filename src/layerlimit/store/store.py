"""The store: names and life cycle of layers over a driver. See docs/store.md for what a crash leaves."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self

from layerlimit.archive import Applied, Change
from layerlimit.archive import Limits as ArchiveLimits
from layerlimit.archive.image import Image
from layerlimit.driver import Driver
from layerlimit.errors import AlreadyExists, Busy, Error, InvalidArgument, OutOfSpace
from layerlimit.limit import Limit, format_size
from layerlimit.store.admission import Policy
from layerlimit.store.check import Check, Finding
from layerlimit.store.entry import Info, Kind, check_labels, check_name, named, speak_of
from layerlimit.store.filling import Told, fill_from_image, fill_from_tars
from layerlimit.store.layer import Layer
from layerlimit.store.loops import mounts_naming
from layerlimit.store.opening import open_database
from layerlimit.store.reading import Reading
from layerlimit.store.reaper import Reaper
from layerlimit.store.reserve import Reserve, spending
from layerlimit.store.rows import new_id, refuse_children, set_labels
from layerlimit.union import Mount

NAMESPACE = "default"


class Store(Reading):
    """Layers by name. Safe for threads and processes; every change is one durable transaction.

    ``namespace`` partitions the names: entries of another namespace are never seen. ``default_limit`` is
    given to writable layers created without one, ``policy`` says how much is admitted; without them it is
    what :meth:`configure` recorded. A context manager; :meth:`close` gives up the database's files and
    nothing else: mounts stay.

    Opening makes what is missing, then finishes or undoes what a killed process left; sentences about what
    was notable of that are in ``opened``. Corrupt when the
    database is missing beside layers of a store: ``check --repair`` rebuilds it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        namespace: str = NAMESPACE,
        union: str = "auto",
        limiter: str = "auto",
        owner: tuple[int, int] = (0, 0),
        default_limit: Limit | None = None,
        policy: Policy | None = None,
    ) -> None:
        check_name(namespace)
        self._default_limit = default_limit
        self.reserve = Reserve(Path(root).absolute())
        driver = self.reserve.through(lambda: Driver(root, union, limiter, owner=owner), frees=True)
        with contextlib.ExitStack() as undo:
            undo.callback(driver.close, failed=True)  # what the driver saw to be done, the next opening does
            database = self.reserve.through(lambda: open_database(driver), frees=True)
            undo.callback(database.close)
            super().__init__(driver, database, namespace, policy)
            self.reaper = Reaper(self.driver, self.database, self.reserve)
            self.opened = self.reaper.run(everywhere=self.driver.swept)
            undo.pop_all()

    def partition(self, namespace: str, *, policy: Policy | None = None) -> Store:
        """The same store with the names of another namespace, and a policy; closing either closes both."""
        other = copy.copy(self)
        other.namespace = check_name(namespace)
        other._policy = policy or self._policy
        return other

    def close(self) -> None:
        """Close the database. The store is not used afterwards."""
        self.database.close()
        self.driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- create ------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        parent: str = "",
        *,
        limit: Limit | None = None,
        unlimited: bool = False,
        labels: Mapping[str, str] | None = None,
        admitted: bool = False,
    ) -> Info:
        """A writable layer over the committed entry ``parent`` (``""``: an empty base).

        Without a ``limit`` it gets the store's default, if there is one and it is not to be ``unlimited``.
        Whoever says ``admitted`` lets nothing be written before :meth:`admit` agrees.
        AlreadyExists, NotFound, InvalidArgument (the parent is not committed), OutOfSpace (admission).
        """
        if limit is None and not unlimited:
            limit = self._default_limit or self.policy.limit
        if not admitted:
            self.admit(limit.bytes if limit else 0)
        return self._add(name, parent, Kind.ACTIVE, limit=limit, labels=labels)

    @spending()
    def view(self, name: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> Info:
        """A read-only view of the committed entry ``parent``, under a name of its own."""
        return self._add(name, parent, Kind.VIEW, limit=None, labels=labels)

    def admit(self, more: int = 0) -> None:
        """OutOfSpace unless a writable layer may be made now, with a limit of ``more`` bytes."""
        capacity = self.capacity()
        self.policy.admit(capacity, more, self._largest() if capacity.full else "")

    def _largest(self) -> str:
        """Who holds the most of the disk, for an error's sentence."""
        sizes = []
        for info in self.ls(f"kind=={Kind.ACTIVE}"):
            with contextlib.suppress(Error):
                sizes.append((self.driver.usage(info.id).bytes, info.name))
        top = ", ".join(f"{name} ({format_size(size)})" for size, name in sorted(sizes, reverse=True)[:3])
        return f"; the largest layers are {top}" if top else ""

    def _add(
        self,
        name: str,
        parent: str,
        kind: Kind,
        *,
        limit: Limit | None,
        labels: Mapping[str, str] | None,
        fill: Callable[[str], tuple[str | None, str]] | None = None,
    ) -> Info:
        """Create, fill and name a driver layer. Its id is locked from before it exists until it has a row."""
        check_name(name)
        kept = check_labels(dict(labels or {}))
        policy = self.policy
        with self.database.reading() as db:
            self._refuse_name(db, name)
            above = self._parent(db, parent)
        with self.reaper.owned(new_id()) as id:
            try:
                if fill is not None:  # it is trash until it is whole
                    with self.database.writing() as db:
                        db.execute("INSERT INTO trash VALUES (?)", (id,))
                self.driver.create(id, above, limit=limit)
                diff_id, content_id = fill(id) if fill else (None, None)
                now = time.time_ns()
                with self.database.writing() as db:
                    self._refuse_name(db, name)
                    self._parent(db, parent)
                    promised = limit.bytes if limit else 0
                    if promised:
                        (before,) = db.execute("SELECT promised FROM total").fetchone()
                        policy.admit(policy.capacity(self.root, before), promised, "")
                    db.execute(
                        "INSERT INTO entry (namespace, name, id, kind, parent, created, updated, diff_id,"
                        " content_id, promised) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            self.namespace,
                            name,
                            id,
                            kind,
                            above or None,
                            now,
                            now,
                            diff_id,
                            content_id,
                            promised,
                        ),
                    )
                    db.execute("DELETE FROM trash WHERE id = ?", (id,))
                    set_labels(db, id, kept)
            except BaseException as error:
                with contextlib.suppress(Error):  # then the reaper does it
                    self.reaper.take_back(id)
                if isinstance(error, Error):
                    speak_of(error, id, name)
                raise
        return self.stat(name)

    def _refuse_name(self, db: sqlite3.Connection, name: str) -> None:
        row = db.execute(
            "SELECT 1 FROM entry WHERE namespace = ? AND name = ?", (self.namespace, name)
        ).fetchone()
        if row is not None:
            raise AlreadyExists(
                f"layer {name!r} exists already", hint="choose another name", code="layer.exists"
            )

    def _parent(self, db: sqlite3.Connection, parent: str) -> str:
        """The driver's id of the parent, which must be committed."""
        if not parent:
            return ""
        above = self._stat(db, parent)
        if above.kind is not Kind.COMMITTED:
            raise InvalidArgument(
                f"layer {parent!r} is {above.kind} and cannot be a parent",
                hint=f"freeze it first: 'layerlimit commit {parent} NEWNAME'"
                if above.writable
                else "use the layer that it is a view of",
                code="parent.not_committed",
            )
        return above.id

    def import_tar(
        self,
        name: str,
        *streams: BinaryIO,
        parent: str = "",
        limit: Limit | None = None,
        labels: Mapping[str, str] | None = None,
        limits: ArchiveLimits | None = None,
        told: Told | None = None,
    ) -> Info:
        """A committed layer with what the layer tars hold, the lowest first: all of them, or nothing.

        ``told`` is called with what each tar came to. Over a ``parent`` there is one tar. Until it is whole
        the layer is not there; one that was interrupted, be it by SIGKILL, is deleted at the next opening.
        """
        if parent and len(streams) != 1:
            raise InvalidArgument("over a parent, one tar is imported at a time", hint="import one by one")

        def fill(id: str) -> tuple[str | None, str]:
            return fill_from_tars(self.driver, id, streams, limits=limits, flat=not parent, told=told)

        self.admit(limit.bytes if limit else 0)
        return self._add(name, parent, Kind.COMMITTED, limit=limit, labels=labels, fill=fill)

    def import_image(
        self,
        name: str,
        image: Image,
        *,
        limit: Limit | None = None,
        labels: Mapping[str, str] | None = None,
        limits: ArchiveLimits | None = None,
        told: Told | None = None,
    ) -> Info:
        """:meth:`import_tar` with all layers of an image, which must have the diff IDs that it says."""

        def fill(id: str) -> tuple[str | None, str]:
            return fill_from_image(self.driver, id, image, limits=limits, told=told)

        self.admit(limit.bytes if limit else 0)
        return self._add(name, "", Kind.COMMITTED, limit=limit, labels=labels, fill=fill)

    # -- change ------------------------------------------------------------------------------------

    def commit(
        self,
        name: str,
        new: str,
        *,
        labels: Mapping[str, str] | None = None,
        durable: bool = True,
        synced: bool = False,
        detach: bool = True,
    ) -> Info:
        """Freeze the writable layer ``name`` under the name ``new``; copies and walks nothing.

        Its file system is synced first, unless ``durable`` is False, which is recorded, or the caller has
        ``synced`` it since it was last written to. Busy while the layer is held; AlreadyExists;
        InvalidArgument when it is not active. Labels are replaced. What :meth:`mounts` attached is detached,
        which takes longer the more was written; without ``detach`` the reaper does it, at its next run.
        """
        check_name(new)
        kept = check_labels(dict(labels or {}))
        with self._holding(name) as info:
            self._require_active(info)
            return self._commit(info, new, kept, durable=durable, synced=synced, detach=detach)

    def _commit(
        self, info: Info, new: str, labels: Mapping[str, str], *, durable: bool, synced: bool, detach: bool
    ) -> Info:
        with self.database.reading() as db:
            self._refuse_name(db, new)
        if any(self.driver.users(info.id)):
            raise Busy(f"layer {info.name!r} is mounted", hint="unmount it first", code="layer.held")
        if durable and not synced:
            self.driver.sync(info.id)
        limited = self.driver.limit(info.id) is not None
        later = limited and not detach
        if not later:
            self.driver.release(info.id)
        used = self.driver.usage(info.id) if limited else None
        now = time.time_ns()
        with self.database.writing() as db:
            self._refuse_name(db, new)
            db.execute(
                "UPDATE entry SET name = ?, kind = ?, created = ?, updated = ?, used_bytes = ?,"
                " used_inodes = ?, durable = ? WHERE id = ?",
                (
                    new,
                    Kind.COMMITTED,
                    now,
                    now,
                    used and used.bytes,
                    used and used.inodes,
                    int(durable),
                    info.id,
                ),
            )
            set_labels(db, info.id, labels)
            if later:
                db.execute("INSERT OR IGNORE INTO detaching VALUES (?)", (info.id,))
        return self.stat(new)

    @contextlib.contextmanager
    def _holding(self, name: str, info: Info | None = None) -> Iterator[Info]:
        """The entry, locked: it is not committed, removed or mounted by others meanwhile.

        ``info`` is what the caller has read of it; it is read again under the lock.
        """
        info = info or self.stat(name)
        with self.reaper.owned(info.id):
            again = self.stat(name)
            if again.id != info.id:
                raise Busy(f"layer {name!r} was replaced meanwhile", hint="try again", code="layer.replaced")
            with named(again):
                yield again

    def _require_active(self, info: Info) -> None:
        if info.kind is not Kind.ACTIVE:
            raise InvalidArgument(
                f"layer {info.name!r} is {info.kind}, not active",
                hint="create a child of it",
                code="kind.not_active",
            )

    @spending()
    def rename(self, name: str, new: str) -> Info:
        """Give an entry another name; children and mounts do not notice."""
        check_name(new)
        with self.database.writing() as db:
            info = self._stat(db, name)
            self._refuse_name(db, new)
            db.execute("UPDATE entry SET name = ?, updated = ? WHERE id = ?", (new, time.time_ns(), info.id))
        return self.stat(new)

    @spending()
    def update(self, name: str, labels: Mapping[str, str], *, only: Iterable[str] | None = None) -> Info:
        """Replace the labels, or with ``only`` set those keys (one that ``labels`` lacks is deleted)."""
        kept = check_labels(dict(labels))
        with self.database.writing() as db:
            info = self._stat(db, name)
            if only is not None:
                keys = set(only)
                kept = {k: v for k, v in info.labels.items() if k not in keys} | {
                    k: v for k, v in kept.items() if k in keys
                }
            set_labels(db, info.id, kept)
            db.execute("UPDATE entry SET updated = ? WHERE id = ?", (time.time_ns(), info.id))
        return self.stat(name)

    def resize(self, name: str, limit: Limit | None) -> None:
        """Give a writable layer another limit; None: no limit. Admission applies.

        It grows in place, mounted or not; see :meth:`Driver.resize`. Everything else (less, fewer inodes, a
        limit for a layer without one, or none) needs a layer that is mounted nowhere: its content moves into
        a new layer, as it is, which one transaction puts in its place. Busy while it is mounted; OutOfSpace
        when the content does not fit, and the layer is as it was; mostly that is seen before anything moves.

        In place the promise is recorded first: a crash leaves it too high, never too low, and the next
        opening settles it. Otherwise a crash leaves a layer in the trash: before the transaction the new one,
        after it the old one.
        """
        with self._holding(name) as info:
            self._require_active(info)
            old = self.driver.limit(info.id)
            if old is not None and limit is not None and _grows(old, limit):
                self._grow(info, limit)
            elif old is not None or limit is not None:
                self._remake(info, old, limit)

    def _grow(self, info: Info, limit: Limit) -> None:
        if limit.bytes > info.promised:
            self.admit(limit.bytes - info.promised)
        with self.database.writing() as db:
            promised = max(limit.bytes, info.promised)
            db.execute("UPDATE entry SET promised = ? WHERE id = ?", (promised, info.id))
            db.execute("INSERT OR IGNORE INTO resizing VALUES (?)", (info.id,))
        try:
            self.driver.resize(info.id, limit)
        finally:
            with contextlib.suppress(Error):  # then the reaper does it
                self.reaper.settle(info.id)

    def _remake(self, info: Info, old: Limit | None, limit: Limit | None) -> None:
        if old is not None and limit is not None:
            inodes = limit.inodes or old.inodes
            limit = dataclasses.replace(limit, inodes=inodes, ephemeral=old.ephemeral, reserve=old.reserve)
        self._require_unmounted(info)
        if limit is not None:
            self._require_fitting(info, limit)
        promised = limit.bytes if limit else 0
        if promised > info.promised:
            self.admit(promised - info.promised)
        with self.reaper.owned(new_id()) as id:
            try:
                with self.database.writing() as db:
                    db.execute("INSERT INTO trash VALUES (?)", (id,))
                self.driver.create(id, self.driver.parent(info.id), limit=limit)
                self.driver.copy(info.id, id)
                with self.database.writing() as db:
                    db.execute("DELETE FROM trash WHERE id = ?", (id,))
                    db.execute(
                        "UPDATE entry SET id = ?, promised = ?, updated = ? WHERE id = ?",
                        (id, promised, time.time_ns(), info.id),
                    )
                    db.execute("INSERT INTO trash VALUES (?)", (info.id,))
            except BaseException as error:
                with contextlib.suppress(Error):  # then the reaper does it
                    self.reaper.take_back(id)
                if isinstance(error, Error):
                    speak_of(error, id, info.name)
                raise

    def _require_unmounted(self, info: Info) -> None:
        """Give up what an engine was handed out, and raise Busy when anybody still sees the layer."""
        if any(self.driver.users(info.id)):
            users = ["a hold"]
        else:
            self.driver.release(info.id)
            users = mounts_naming(info.id)
        if users:
            raise Busy(
                f"layer {info.name!r} is kept mounted by {users[0]}, and mounted layers only grow",
                hint="unmount it first",
                code="layer.held",
            )

    def _require_fitting(self, info: Info, limit: Limit) -> None:
        """Raise OutOfSpace when what the layer uses is above the limit."""
        used = self.driver.usage(info.id)
        inodes = used.inodes if info.promised else used.inodes - 1  # a walk counts the top, an image has it
        if used.bytes > limit.bytes:
            least = f"{format_size(used.bytes)}, more than {format_size(limit.bytes)}"
        elif limit.inodes is not None and inodes > limit.inodes:
            least = f"{inodes} inodes, more than {limit.inodes}"
        else:
            return
        raise OutOfSpace(
            f"layer {info.name!r} uses {least}",
            hint="delete some of its files, or ask for a larger limit",
            code="resize.content",
        )

    @spending(frees=True)
    def rm(self, name: str, *, force: bool = False, info: Info | None = None) -> None:
        """Remove an entry: one transaction; its layer is deleted by the reaper, at once or later.

        Busy when it has children, is mounted (with ``force`` it is unmounted), or a process works in it.
        ``info`` is the entry as the caller has just read it, if it has.
        """
        with self._holding(name, info) as info:
            with self.database.reading() as db:
                refuse_children(db, info)
            if self.driver.exists(info.id):
                self._give_up_holds(info, force)
            self._forget(name)

    def _give_up_holds(self, info: Info, force: bool) -> None:
        """Make sure that nobody holds the layer. A damaged one cannot be held, and can be removed."""
        try:
            holds, processes = self.driver.users(info.id)
            if force and not processes:
                for _ in range(holds):
                    self.driver.put(info.id)
                self.driver.release(info.id)
                return
        except Busy:
            raise
        except Error:
            return
        if processes:
            raise Busy(
                f"layer {info.name!r} is in use by a running process", hint="end it first", code="layer.held"
            )
        if holds:
            raise Busy(
                f"layer {info.name!r} is mounted",
                hint=f"undo it with 'layerlimit umount {info.name}', or use --force",
                code="layer.held",
            )

    def _forget(self, name: str) -> None:
        with self.database.writing() as db:
            info = self._stat(db, name)
            refuse_children(db, info)
            db.execute("DELETE FROM entry WHERE id = ?", (info.id,))
            db.execute("INSERT INTO trash VALUES (?)", (info.id,))

    # -- mount -------------------------------------------------------------------------------------

    @spending()
    def mount(self, name: str, *, read_only: bool = False) -> Path:
        """Mount the layer here and return where; a hold that ends with :meth:`umount` or the boot.

        A committed layer, or a view, is mounted read-only.
        """
        with self._holding(name) as info:
            return self.driver.get(info.id, read_only=read_only or not info.writable)

    @spending(frees=True)
    def umount(self, name: str, *, read_only: bool = False) -> None:
        """Give up one :meth:`mount`, a ``read_only`` one if it says so; the last one unmounts."""
        with self._entry(name) as info:
            self.driver.put(info.id, read_only=read_only or not info.writable)

    @contextlib.contextmanager
    def mounted(self, name: str, *, read_only: bool = False) -> Iterator[Path]:
        """The layer, mounted for the length of a ``with`` block; freed also when the process dies."""
        with contextlib.ExitStack() as undo:
            with self._holding(name) as info:
                undo.enter_context(named(info))
                view = read_only or not info.writable
                path = self.reserve.through(
                    lambda: undo.enter_context(self.driver.mounted(info.id, read_only=view))
                )
            yield path

    @spending()
    def mounts(self, name: str, *, info: Info | None = None) -> list[Mount]:
        """What an engine has to mount to see the entry; InvalidArgument for a committed one.

        ``info`` is the entry as the caller has just read it, if it has.
        """
        with self._holding(name, info) as info:
            if info.kind is Kind.COMMITTED:
                raise InvalidArgument(
                    f"layer {name!r} is committed and has no mounts",
                    hint="make a view of it",
                    code="kind.committed",
                )
            return self.driver.mounts(info.id, read_only=info.kind is Kind.VIEW)

    # -- content -----------------------------------------------------------------------------------

    def changes(self, name: str) -> list[Change]:
        """See :meth:`Driver.changes`."""
        with self._entry(name) as info:
            return self.driver.changes(info.id)

    def diff(self, name: str) -> BinaryIO:
        """See :meth:`Driver.diff`."""
        with self._entry(name) as info:
            return self.driver.diff(info.id)

    def apply(self, name: str, stream: BinaryIO, *, limits: ArchiveLimits | None = None) -> Applied:
        """Apply a layer tar to a writable layer that nobody holds: all of it, or nothing."""
        with self._holding(name) as info:
            self._require_active(info)
            return self.driver.apply(info.id, stream, limits=limits)

    def layer(self, name: str) -> Layer:
        """The entry as an object; NotFound."""
        return Layer(self, self.stat(name).name)

    def check(self, *, repair: bool = False, force: bool = False, quick: bool = False) -> Iterator[Finding]:
        """Compare names, layers, images, mounts and devices; see :mod:`layerlimit.store.check`."""
        return Check(self.driver, self.database, repair=repair, force=force, quick=quick).run()

    def gc(self) -> list[str]:
        """Delete what no entry references; returns sentences about what was done or could not be."""
        self.driver.sweep()
        return self.reaper.run()


def _grows(old: Limit, new: Limit) -> bool:
    """Whether the new limit can be had by growing the file system."""
    if new.bytes < old.bytes:
        return False
    return new.inodes is None or (old.inodes is not None and new.inodes >= old.inodes)
