"""The reading half of a store: what there is, and how it is. Nothing here changes an entry."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from layerlimit.driver import Driver, State
from layerlimit.errors import Error, NotFound
from layerlimit.limit import Limit, Usage
from layerlimit.store.admission import Capacity, Policy, read_policy, write_policy
from layerlimit.store.database import Database
from layerlimit.store.entry import Gauge, Info, Kind, check_name, named, speak_of
from layerlimit.store.filters import parse
from layerlimit.store.gauges import Gauges
from layerlimit.store.rows import COLUMNS, FROM, LABELS, chain, children, to_info


class Reading:
    """Entries of one namespace over a driver and a database that others may share."""

    def __init__(self, driver: Driver, database: Database, namespace: str, policy: Policy | None) -> None:
        self.namespace = check_name(namespace)
        self.driver = driver
        self.root: Path = driver.root
        self.database = database
        self._policy = policy

    def stat(self, name: str) -> Info:
        """The entry called ``name``; NotFound."""
        with self.database.asking() as db:
            return self._stat(db, name)

    def find(self, id: str) -> Info | None:
        """The entry, in whatever namespace, of the driver's layer ``id``; None when no entry has it."""
        with self.database.asking() as db:
            row = db.execute(f"SELECT {COLUMNS}, {LABELS} {FROM} WHERE entry.id = ?", (id,)).fetchone()
            return None if row is None else to_info(row)

    def _stat(self, db: sqlite3.Connection, name: str) -> Info:
        row = db.execute(
            f"SELECT {COLUMNS}, {LABELS} {FROM} WHERE entry.namespace = ? AND entry.name = ?",
            (self.namespace, name),
        ).fetchone()
        if row is None:
            raise NotFound(
                f"there is no layer {name!r}",
                hint="see which there are with 'layerlimit ls'",
                code="layer.not_found",
            )
        return to_info(row)

    def exists(self, name: str) -> bool:
        """Whether there is an entry called ``name``."""
        try:
            self.stat(name)
        except NotFound:
            return False
        return True

    def ls(self, *filters: str) -> list[Info]:
        """The entries that match any of ``filters`` (containerd's language; none: all), sorted by name."""
        matches = parse(filters)
        with self.database.reading() as db:
            labels: dict[str, dict[str, str]] = {}
            for id, key, value in db.execute(
                "SELECT id, key, value FROM label JOIN entry USING (id) WHERE namespace = ?",
                (self.namespace,),
            ):
                labels.setdefault(id, {})[key] = value
            rows = db.execute(
                f"SELECT {COLUMNS} {FROM} WHERE entry.namespace = ? ORDER BY entry.name", (self.namespace,)
            )
            found = [to_info(row, labels.get(row["id"], {})) for row in rows]
        return [
            info
            for info in found
            if matches({"name": info.name, "parent": info.parent, "kind": str(info.kind)}, info.labels)
        ]

    def usage(self, name: str) -> Usage:
        """Bytes and inodes of the layer's own changes: constant time when it is limited or was recorded."""
        info = self.stat(name)
        if info.kind is Kind.COMMITTED and info.used_bytes is not None and info.used_inodes is not None:
            return Usage(info.used_bytes, info.used_inodes)
        with named(info):
            usage = self.driver.usage(info.id)
        if info.kind is Kind.COMMITTED:
            with self.database.writing() as db:
                db.execute(
                    "UPDATE entry SET used_bytes = ?, used_inodes = ? WHERE id = ? AND kind = ?",
                    (usage.bytes, usage.inodes, info.id, Kind.COMMITTED),
                )
        return usage

    def limit(self, name: str) -> Limit | None:
        """The limit in force, None when there is none."""
        with self._entry(name) as info:
            return self.driver.limit(info.id)

    def limit_of(self, info: Info) -> Limit | None:
        """:meth:`limit` of an entry that was read already, for those who ask for many."""
        try:
            return self.driver.limit(info.id)
        except Error as error:
            speak_of(error, info.id, info.name)
            raise

    def chain(self, name: str) -> list[str]:
        """The names of the entry's ancestors, the nearest first."""
        with self.database.reading() as db:
            return chain(db, self._stat(db, name).id)

    def children(self, name: str) -> list[str]:
        """The names of the entries that stand on this one, sorted."""
        with self.database.reading() as db:
            return children(db, self._stat(db, name).id)

    def state(self, name: str) -> State:
        """Whether the layer is mounted, held and healthy."""
        with self._entry(name) as info:
            return self.driver.state(info.id)

    def gauges(self) -> list[Gauge]:
        """Every layer of every namespace as it is at this moment; waits for nobody who works on one.

        Limits and usage are those of the writable limited layers: they take constant time each.
        """
        with self.database.reading() as db:
            rows = db.execute("SELECT namespace, name, id, kind, promised FROM entry").fetchall()
        gauges = Gauges(self.root)
        return [
            gauges.read(namespace, name, id, Kind(kind), limited=promised > 0)
            for namespace, name, id, kind, promised in rows
        ]

    @contextlib.contextmanager
    def _entry(self, name: str) -> Iterator[Info]:
        """The entry; what goes wrong in the block is said of its name instead of its id."""
        info = self.stat(name)
        with named(info):
            yield info

    @property
    def policy(self) -> Policy:
        """How much limits may promise, and what new layers get."""
        if self._policy is not None:
            return self._policy
        with self.database.reading() as db:
            return read_policy(db)

    def configure(self, policy: Policy) -> None:
        """Record the policy for everybody who opens this store without one; what exists is left alone."""
        with self.database.writing() as db:
            write_policy(db, policy)

    def capacity(self) -> Capacity:
        """The disk, and what limits promise of it."""
        with self.database.reading() as db:
            (promised,) = db.execute("SELECT promised FROM total").fetchone()
        return self.policy.capacity(self.root, promised)

    def tree(self) -> dict[str, list[str]]:
        """The names of each entry's children, by name; ``""`` has the bases."""
        found: dict[str, list[str]] = {}
        for info in self.ls():
            found.setdefault(info.parent, []).append(info.name)
        return found
