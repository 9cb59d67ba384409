"""Finding the database of a root, or making the first one."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from layerlimit.driver import Driver
from layerlimit.driver.layout import Format, read_format
from layerlimit.errors import Corrupt, InvalidArgument
from layerlimit.linux import files
from layerlimit.store.database import Database
from layerlimit.store.entry import Kind

NAMESPACE = "default"


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
            code="store.missing",
        )
    database = Database(path)
    if not found.store:
        take_in(driver, database)
        mark(driver.root, found)
    return database


def mark(root: Path, found: Format) -> None:
    """Record in ``format`` that a store owns the root: from then on a missing database is an error."""
    raw = msgspec.json.encode(msgspec.structs.replace(found, store=True)) + b"\n"
    files.write_durably(root / "format", raw, unique=True)


def take_in(driver: Driver, database: Database) -> list[str]:
    """Name every layer that has no row after its id; what has children is committed. Returns the ids."""
    chains = {id: driver.chain(id) for id in driver.ids()}
    parents = {chain[0] for chain in chains.values() if chain}
    now = time.time_ns()
    with database.writing() as db:
        known = {id for (id,) in db.execute("SELECT id FROM entry UNION SELECT id FROM trash")}
        new = sorted(set(chains) - known, key=lambda id: len(chains[id]))
        for id in new:
            limit = driver.limit(id)
            db.execute(
                "INSERT INTO entry (namespace, name, id, kind, parent, created, updated, promised)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    NAMESPACE,
                    id,
                    id,
                    Kind.COMMITTED if id in parents else Kind.ACTIVE,
                    chains[id][0] if chains[id] else None,
                    now,
                    now,
                    limit.bytes if limit else 0,
                ),
            )
    return new
