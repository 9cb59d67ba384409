"""``store.db``: the names of layers, and nothing that is true elsewhere.

    entry   one row per name: which driver layer it is, its kind, its parent, its times
    label   free text by key, for an entry
    trash   driver layers that no entry names any more, or not yet (an import); the reaper deletes them
    resizing  layers that are about to grow: their promises may be too high; the reaper settles them
    detaching  committed layers whose images are still attached from before; the reaper detaches them
    total   one row, kept by triggers: how many bytes the limits of all entries promise together
    policy  one row once somebody configured admission

Structure (chains) and limits are the driver's. ``entry.parent`` repeats the first link of a chain so that
the database itself refuses to delete a parent, and ``entry.promised`` repeats a limit so that admission
need not read every layer; ``check`` compares both with the driver and puts them right from there.

Every change is one transaction. WAL with ``synchronous=FULL``: a transaction that was reported is on disk.
Schema versions are ``PRAGMA user_version``; a database newer than this code is refused.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerlimit.errors import Corrupt, Error, NotSupported, OutOfSpace
from layerlimit.store.reserve import is_full

_MIGRATIONS = (
    """
    CREATE TABLE entry (
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        id TEXT NOT NULL UNIQUE,                     -- the driver's
        kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)), -- view, active, committed: containerd's numbers
        parent TEXT REFERENCES entry (id),           -- id of the parent's entry
        created INTEGER NOT NULL,                    -- nanoseconds since 1970, UTC
        updated INTEGER NOT NULL,
        used_bytes INTEGER,                          -- recorded when it was committed, NULL if not known
        used_inodes INTEGER,
        durable INTEGER NOT NULL DEFAULT 1,          -- 0: committed without a sync, at the user's wish
        diff_id TEXT,                                -- of a layer that was imported from one tar
        content_id TEXT,                             -- of what was imported, for check
        promised INTEGER NOT NULL DEFAULT 0,         -- bytes of its limit
        PRIMARY KEY (namespace, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX entry_by_parent ON entry (parent);
    CREATE TABLE label (
        id TEXT NOT NULL REFERENCES entry (id) ON DELETE CASCADE ON UPDATE CASCADE,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (id, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE trash (id TEXT NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE total (promised INTEGER NOT NULL) STRICT;
    INSERT INTO total VALUES (0);
    CREATE TRIGGER promised_insert AFTER INSERT ON entry BEGIN
        UPDATE total SET promised = promised + new.promised;
    END;
    CREATE TRIGGER promised_update AFTER UPDATE OF promised ON entry BEGIN
        UPDATE total SET promised = promised + new.promised - old.promised;
    END;
    CREATE TRIGGER promised_delete AFTER DELETE ON entry BEGIN
        UPDATE total SET promised = promised - old.promised;
    END;
    """,
    """
    CREATE TABLE policy (
        overcommit REAL NOT NULL,
        floor INTEGER NOT NULL,                      -- bytes that stay free on the disk
        default_limit INTEGER NOT NULL               -- bytes for a layer created without a limit, 0: none
    ) STRICT;
    """,
    """
    CREATE TABLE resizing (id TEXT NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE detaching (id TEXT NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID;
    """,
)
_WAIT_SECONDS = 30.0
DAMAGED = "store.corrupt"  # the code of the error that a rebuild cures


class Database:
    """Connections to one ``store.db``, one for each thread; safe for threads and processes.

    It is made if it is not there. One that ``exists`` must have content: an empty file is Corrupt, since
    taking it for a new database would make orphans of all layers.
    """

    def __init__(self, path: Path, *, exists: bool = False) -> None:
        self.path = path
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # SQLite has waiters sleep and try again; threads of ours queue instead
        try:
            with self._typed():
                self._migrate(self.connection(), exists)
        except BaseException:
            self.close()
            raise

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = sqlite3.connect(
                self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            found.row_factory = sqlite3.Row
            try:
                found.execute("PRAGMA journal_mode = WAL")
                found.execute("PRAGMA synchronous = FULL")
                found.execute("PRAGMA foreign_keys = ON")
            except BaseException:
                found.close()
                raise
            self._local.connection = found
            with self._lock:
                self._all.append(found)
        return found

    def _migrate(self, connection: sqlite3.Connection, exists: bool) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if exists and version == 0:
            raise _damaged(f"{self.path} is empty")
        if version > len(_MIGRATIONS):
            raise NotSupported(
                f"{self.path} has schema {version}, newer than the {len(_MIGRATIONS)} known here",
                hint="use a newer layerlimit",
                code="store.newer",
            )
        if version == len(_MIGRATIONS):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for number in range(version, len(_MIGRATIONS)):
                for statement in _statements(_MIGRATIONS[number]):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for reading; several statements see one moment."""
        with self._typed():
            connection = self.connection()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def asking(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one statement that reads."""
        with self._typed():
            yield self.connection()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: durable when the block ends, undone when it raises."""
        with self._typed(), self._turn:
            connection = self.connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                _roll_back(connection)
                raise
            try:
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                _overwrite(connection)
                raise

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            unopened = name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN"))  # it may be for want of space
            if name == "SQLITE_FULL" or (unopened and is_full(self.path.parent)):
                raise OutOfSpace(f"{self.path} cannot grow: the disk is full", code="store.full") from error
            if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
                raise _damaged(f"{self.path} is damaged: {error}") from error
            raise Error(f"{self.path}: {error}", code="store.database") from error

    def close(self) -> None:
        """Close every thread's connection."""
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._local = threading.local()


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):  # the error that led here is the one to report
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _overwrite(connection: sqlite3.Connection) -> None:
    """Have nothing left in the log of a transaction that failed to commit.

    When its sync fails, it is written all the same: whoever recovers the log would take it for committed.
    Another transaction, of the version that it has anyway, takes its place.
    """
    with contextlib.suppress(sqlite3.Error):  # a disk that takes nothing any more
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version}")


def _damaged(message: str) -> Corrupt:
    hint = "run 'layerlimit check --repair', which keeps it in lost/ and rebuilds it"
    return Corrupt(message, hint=hint, code=DAMAGED)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; ``executescript`` would end the transaction that makes them one."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
