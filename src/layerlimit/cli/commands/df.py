"""``layerlimit df``: how much of their limits layers use."""

from __future__ import annotations

from typing import Any

import click

from layerlimit.cli.describe import capacity_entry, capacity_text, limit_entry
from layerlimit.cli.options import ANY_NAMES, Command
from layerlimit.cli.output import columns, pairs, printable
from layerlimit.cli.settings import Settings
from layerlimit.errors import Error, NotFound
from layerlimit.limit import format_size
from layerlimit.store import Capacity, Store

_HEADER = ("NAME", "LIMIT", "USED", "AVAIL", "USE%", "INODES", "IUSED", "IUSE%")
_NUMBERS = tuple(range(1, len(_HEADER)))


@click.command("df", cls=Command, short_help="Show how much of their limits layers use.")
@ANY_NAMES
@click.option("--host", is_flag=True, help="Show the disk instead: its space, and what limits promise of it.")
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], host: bool) -> None:
    """Show limit and use of the layers NAME, or of all that have a limit.

    A layer without one is measured by a walk through its files, and only when it is named.
    """
    if host:
        with settings.open_store() as store:
            capacity = store.capacity()
        settings.show(capacity_entry(capacity), *_host(capacity))
        return
    if not names and not settings.has_layers():
        settings.say(f"there are no layers in {settings.root}")
        settings.show_all([], lambda: columns(_HEADER, []))
        return
    with settings.open_store() as store:
        entries = [_entry(store, name) for name in names] if names else _limited(store, settings)
        for entry in entries:
            if entry["state"] == "degraded":
                settings.say(f"{entry['name']} is degraded and takes no writes; its next mount repairs it")
        if not names:
            settings.say(capacity_text(store.capacity()))
    settings.show_all(entries, lambda: columns(_HEADER, map(_row, entries), right=_NUMBERS))


def _host(capacity: Capacity) -> list[str]:
    return pairs(
        [
            ("Size", format_size(capacity.size)),
            ("Free", f"{format_size(capacity.free)}{': too little for new layers' if capacity.full else ''}"),
            ("Floor", format_size(capacity.floor)),
            ("Promised", format_size(capacity.promised)),
            ("Admissible", f"{format_size(capacity.admissible)}, overcommit {capacity.overcommit:g}"),
        ]
    )


def _limited(store: Store, settings: Settings) -> list[dict[str, Any]]:
    found = []
    for info in store.ls():
        try:
            if store.limit_of(info) is not None:
                found.append(_entry(store, info.name))
        except NotFound:
            continue  # removed meanwhile
        except Error as error:
            settings.say(f"{info.name} cannot be measured: {error}")
    return found


def _entry(store: Store, name: str) -> dict[str, Any]:
    limit, usage = store.limit(name), store.usage(name)
    return {
        "name": name,
        "limit": limit_entry(limit),
        "used": {"bytes": usage.bytes, "inodes": usage.inodes},
        "available": None if limit is None else {"bytes": max(limit.bytes - usage.bytes, 0)},
        "state": store.state(name).health.state,
    }


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    name, limit, used = printable(entry["name"]), entry["limit"], entry["used"]
    if limit is None:
        return name, "none", format_size(used["bytes"]), "-", "-", "-", str(used["inodes"]), "-"
    return (
        name,
        format_size(limit["bytes"]),
        format_size(used["bytes"]),
        format_size(entry["available"]["bytes"]),
        _percent(used["bytes"], limit["bytes"]),
        "-" if limit["inodes"] is None else str(limit["inodes"]),
        str(used["inodes"]),
        _percent(used["inodes"], limit["inodes"]),
    )


def _percent(used: int, limit: int | None) -> str:
    """As df(1): rounded up, so that 100 % means full; the last block a limit gives on top counts as full."""
    return "-" if not limit else f"{min(-(-100 * used // limit), 100)}%"
