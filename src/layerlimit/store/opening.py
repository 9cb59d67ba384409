"""Finding the database of a root, or making the first one."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec

from layerlimit.driver import Driver
from layerlimit.driver.layout import Format, read_format
from layerlimit.driver.locks import Locks
from layerlimit.errors import Corrupt, Error, InvalidArgument, from_os_error
from layerlimit.linux import files
from layerlimit.store.database import Database
from layerlimit.store.entry import Kind

NAMESPACE = "default"
MISSING = "store.missing"  # the code of the error that a rebuild cures


def open_database(driver: Driver) -> Database:
    """The root's database. The first store on a root takes in the layers that a driver made there, by id."""
    path = driver.root / "store.db"
    found = read_format(driver.root)
    if found is None:
        raise InvalidArgument(
            f"{driver.root} is a root of the Go driver and has no store",
            hint="use layerlimit.Driver, or convert it with 'layerlimit migrate'",
            code="store.go_root",
        )
    if found.store and not path.exists():
        raise Corrupt(
            f"{path} is missing, but the layers beside it belong to a store",
            hint="restore it, or run 'layerlimit check --repair', which rebuilds it from the layers",
            code=MISSING,
        )
    database = Database(path, exists=found.store)
    if not found.store:
        take_in(driver, database)
        mark(driver.root, found)
    return database


def mark(root: Path, found: Format) -> None:
    """Record in ``format`` that a store owns the root: from then on a missing database is an error."""
    raw = msgspec.json.encode(msgspec.structs.replace(found, store=True)) + b"\n"
    try:
        # The sweep of the trash deletes what is staged there while nobody has this lock.
        with Locks(root / "lock").hold("format"):
            files.write_durably(root / "format", raw, staging=root / "trash")
    except OSError as error:
        raise from_os_error(error, f"write {root / 'format'}") from error


def take_in(driver: Driver, database: Database) -> list[str]:
    """Name every layer that has no row after its id; what has children is committed. Returns the ids.

    Rows that are there get their parents and promises from the driver, too.
    """
    chains = {id: _chain(driver, id) for id in driver.ids()}
    parents = {chain[0] for chain in chains.values() if chain}
    now = time.time_ns()
    with database.writing() as db:
        known = {id for (id,) in db.execute("SELECT id FROM entry UNION SELECT id FROM trash")}
        new = sorted(set(chains) - known, key=lambda id: len(chains[id]))
        for id in new:
            db.execute(
                "INSERT INTO entry (namespace, name, id, kind, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    NAMESPACE,
                    _free_name(db, id),
                    id,
                    Kind.COMMITTED if id in parents else Kind.ACTIVE,
                    now,
                    now,
                ),
            )
        named = [id for (id,) in db.execute("SELECT id FROM entry") if id in chains]
        for id in named:
            above = next(iter(chains[id]), None)
            db.execute(
                "UPDATE entry SET parent = (SELECT id FROM entry WHERE id = ?), promised = ? WHERE id = ?",
                (above, _promise(driver, id), id),
            )
    return new


def _chain(driver: Driver, id: str) -> tuple[str, ...]:
    """The chain; one that is damaged is for ``check`` to report, and hides no other layer."""
    try:
        return driver.chain(id)
    except Error:
        return ()


def _promise(driver: Driver, id: str) -> int:
    try:
        limit = driver.limit(id)
    except Error:
        return 0
    return limit.bytes if limit else 0


def _free_name(db: sqlite3.Connection, id: str) -> str:
    """The id, or with a number when somebody called another layer so."""
    name, number = id, 1
    while db.execute("SELECT 1 FROM entry WHERE namespace = ? AND name = ?", (NAMESPACE, name)).fetchone():
        number += 1
        name = f"{id}-{number}"
    return name
