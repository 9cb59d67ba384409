"""Tables of TOML, as plain dictionaries or as a document that keeps the user's text: one edit serves both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit

Table = Any  # a mutable mapping: a dict, or a table of tomlkit's


def at(table: Table, *keys: str) -> Table:
    """The table at ``keys``; an empty one, of no use to a writer, where it is missing or no table."""
    for key in keys:
        table = table.get(key, {}) if isinstance(table, Mapping) else {}
    return table if isinstance(table, Mapping) else {}


def under(table: Table, *keys: str) -> Table:
    """The table at ``keys``, made where it is missing."""
    for key in keys:
        if key not in table:
            table[key] = tomlkit.table(is_super_table=True) if _is_text(table) else {}
        table = table[key]
    return table


def made_table(beside: Table, values: Mapping[str, Any]) -> Table:
    """A table with these values, of the kind that ``beside`` is of."""
    if not _is_text(beside):
        return plain(values)
    made = tomlkit.table()
    for key, value in values.items():
        made[key] = made_table(beside, value) if isinstance(value, Mapping) else value
    return made


def made_tables(beside: Table, values: list[dict[str, Any]]) -> Any:
    """An array of such tables."""
    if not _is_text(beside):
        return [plain(each) for each in values]
    made = tomlkit.aot()
    for each in values:
        made.append(made_table(beside, each))
    return made


def drop_empty(table: Table, *places: tuple[str, ...]) -> None:
    """Take out the tables that are empty: they say nothing."""
    for place in places:
        above = at(table, *place[:-1])
        if place[-1] in above and not above[place[-1]]:
            del above[place[-1]]


def plain(value: Any) -> Any:
    """The value without the text that it was written in."""
    value = value.unwrap() if hasattr(value, "unwrap") else value
    return {key: plain(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _is_text(table: Table) -> bool:
    return hasattr(table, "unwrap")
