"""Checking a root whatever state its database is in, and making a new database from what is left.

A rebuild deletes nothing. Its steps, each durable before the next: ``store.db.new`` is made, with the names
that can still be read from the old database and the ids of all other layers → it is called
``store.db.rebuilt``: it is whole → the old files move to ``lost/``, ``store.db`` first → the new one gets its
name. A crash between them leaves a database that is damaged or missing, as before: the next ``check
--repair`` does it again, from ``store.db`` or, if that is in ``lost/`` already, with what was rebuilt.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerlimit.driver import Driver
from layerlimit.driver.layout import read_format
from layerlimit.errors import Busy, Corrupt, Error, from_os_error
from layerlimit.linux import files
from layerlimit.store.check import Finding
from layerlimit.store.database import DAMAGED, Database
from layerlimit.store.opening import MISSING, mark, take_in
from layerlimit.store.reaper import store_locks
from layerlimit.store.store import Store

_FILES = ("store.db", "store.db-wal", "store.db-shm")
_UNREAD = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_BUSY", "SQLITE_NOMEM")
_ENTRY = "namespace, name, id, kind, created, updated, used_bytes, used_inodes, durable, diff_id, content_id"


def check_root(
    root: str | os.PathLike[str], *, repair: bool = False, force: bool = False, quick: bool = False
) -> Iterator[Finding]:
    """:meth:`Store.check`, also where the store cannot be opened because its database is missing or damaged.

    With ``repair`` such a database is rebuilt first, see :func:`rebuild`.
    """
    try:
        yield from _check(root, repair=repair, force=force, quick=quick)
    except Corrupt as error:
        if error.code not in (MISSING, DAMAGED):
            raise
        if not repair:
            yield Finding(error.code, "store.db", f"{error.message} ({error.hint})")
            return
        yield Finding(error.code, "store.db", f"{error.message}; {_sentence(rebuild(root))}", True)
        yield from _check(root, repair=repair, force=force, quick=quick)


def _check(root: str | os.PathLike[str], *, repair: bool, force: bool, quick: bool) -> Iterator[Finding]:
    with Store(root) as store:
        for finding in store.check(repair=repair, force=force, quick=quick):
            if finding.code == "store.damaged" and repair:
                raise Corrupt(finding.message, code=DAMAGED)
            yield finding


def _sentence(named: tuple[int, int]) -> str:
    kept, new = named
    return f"it is rebuilt: {kept} layers kept their names, {new} are called by their ids"


def rebuild(root: str | os.PathLike[str]) -> tuple[int, int]:
    """Make a new database for the layers in ``root``; nobody else may have the store open.

    Layers keep the names, kinds and labels that can be read from what is there. The others get their ids as
    names, and are committed if they have children. The old files are kept in ``lost/``. Returns how many
    kept their names, and how many were named by their ids.
    """
    driver = Driver(root)
    try:
        with store_locks(driver.root).everything():  # what somebody is doing comes to its end first
            return _rebuild(driver)
    except OSError as error:
        raise from_os_error(error, f"rebuild {driver.root / 'store.db'}") from error


def _rebuild(driver: Driver) -> tuple[int, int]:
    old, new, rebuilt = (driver.root / name for name in ("store.db", "store.db.new", "store.db.rebuilt"))
    source = old if old.exists() or not rebuilt.exists() else rebuilt
    _unlink(new, "", "-wal", "-shm")
    entries, labels = _read_what_is_left(source)
    database = Database(new)
    try:
        kept = _restore(driver, database, entries, labels)
        named = take_in(driver, database)
        _fold(database)
    finally:
        database.close()
    for path in (new, rebuilt):  # what a failed close leaves
        _unlink(path, "-wal", "-shm")
    os.rename(new, rebuilt)
    files.sync_directory(driver.root)
    for name in _FILES:
        if (driver.root / name).exists():
            driver.lose_path(driver.root / name)
    os.rename(rebuilt, old)
    files.sync_directory(driver.root)
    found = read_format(driver.root)
    if found is not None and not found.store:
        mark(driver.root, found)
    return kept, len(named)


def _unlink(database: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _fold(database: Database) -> None:
    """Have all of a database in its one file, durably. Closing it does that too, but keeps errors secret."""
    try:
        (busy, *_) = database.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise Error(f"cannot write {database.path}: {error}", code="store.database") from error
    if busy:
        raise Busy(f"{database.path} is in use", hint="end what reads it and try again")


def _read_what_is_left(path: Path) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The entries and labels that a damaged database still gives."""
    entries: list[tuple[Any, ...]] = []
    labels: list[tuple[Any, ...]] = []
    if path.exists():
        with _tolerating_damage(path), contextlib.closing(sqlite3.connect(path)) as db:
            with _tolerating_damage(path):
                entries.extend(db.execute(f"SELECT {_ENTRY} FROM entry"))
            with _tolerating_damage(path):
                labels.extend(db.execute("SELECT id, key, value FROM label"))
    return entries, labels


@contextlib.contextmanager
def _tolerating_damage(path: Path) -> Iterator[None]:
    """What is damaged is passed over. What cannot be read now is an error: its names would be given up."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorname", "").startswith(_UNREAD):
            raise Error(
                f"cannot read what {path} still has: {error}",
                hint="try again; should it stay so, move it away: then layers are named by their ids",
                code="store.database",
            ) from error


def _restore(
    driver: Driver, database: Database, entries: list[tuple[Any, ...]], labels: list[tuple[Any, ...]]
) -> int:
    """Enter what was read of layers that exist; :func:`take_in` gives parents and promises to all."""
    kept = 0
    with database.writing() as db:
        for entry in entries:
            if isinstance(entry[2], str) and driver.exists(entry[2]):
                with contextlib.suppress(sqlite3.IntegrityError):
                    places = ", ".join("?" * len(entry))
                    db.execute(f"INSERT INTO entry ({_ENTRY}) VALUES ({places})", entry)
                    kept += 1
        for label in labels:
            with contextlib.suppress(sqlite3.IntegrityError):
                db.execute("INSERT INTO label VALUES (?, ?, ?)", label)
    return kept
