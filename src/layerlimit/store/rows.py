"""Rows of ``store.db`` as entries, and the statements that several operations share."""

from __future__ import annotations

import base64
import os
import sqlite3
from collections.abc import Mapping

import msgspec

from layerlimit.errors import Busy
from layerlimit.store.entry import Info, Kind

COLUMNS = (
    "entry.namespace, entry.name, entry.id, entry.kind, coalesce(above.name, '') AS parent, entry.created,"
    " entry.updated, entry.used_bytes, entry.used_inodes, entry.durable, entry.diff_id, entry.promised"
)
LABELS = "(SELECT json_group_object(key, value) FROM label WHERE label.id = entry.id) AS labels"
FROM = "FROM entry LEFT JOIN entry AS above ON above.id = entry.parent"


def new_id() -> str:
    """A short id: 128 of them fit the page of options that engines mount with."""
    return "s" + base64.b32encode(os.urandom(5)).decode().lower()


def to_info(row: sqlite3.Row, labels: dict[str, str] | None = None) -> Info:
    """The entry of a row of :data:`COLUMNS`, and of :data:`LABELS` where its labels are not given."""
    values = dict(row)
    values["kind"] = Kind(values["kind"])
    values["durable"] = bool(values["durable"])
    if labels is None:
        labels = dict(sorted(msgspec.json.decode(values["labels"]).items()))
    values["labels"] = labels
    return Info(**values)


def chain(db: sqlite3.Connection, id: str) -> list[str]:
    """The names of an entry's ancestors, the nearest first."""
    rows = db.execute(
        "WITH RECURSIVE above (id, name, parent, depth) AS ("
        " SELECT id, name, parent, 0 FROM entry WHERE id = ?"
        " UNION ALL SELECT entry.id, entry.name, entry.parent, depth + 1"
        " FROM above JOIN entry ON entry.id = above.parent"
        ") SELECT name FROM above WHERE depth > 0 ORDER BY depth",
        (id,),
    )
    return [name for (name,) in rows]


def children(db: sqlite3.Connection, id: str) -> list[str]:
    """The names of the entries that stand on an entry, sorted."""
    return [name for (name,) in db.execute("SELECT name FROM entry WHERE parent = ? ORDER BY name", (id,))]


def refuse_children(db: sqlite3.Connection, info: Info) -> None:
    """Busy when anything stands on the entry."""
    found = children(db, info.id)
    if found:
        names = ", ".join(map(repr, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise Busy(
            f"layer {info.name!r} is the parent of {names}",
            hint="remove those first",
            code="layer.has_children",
        )


def set_labels(db: sqlite3.Connection, id: str, labels: Mapping[str, str]) -> None:
    """Replace the labels of an entry."""
    db.execute("DELETE FROM label WHERE id = ?", (id,))
    db.executemany("INSERT INTO label VALUES (?, ?, ?)", [(id, key, value) for key, value in labels.items()])
