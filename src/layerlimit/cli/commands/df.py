"""``layerlimit df``: how much of their limits layers use."""

from __future__ import annotations

from typing import Any

import click

from layerlimit.cli.describe import limit_entry
from layerlimit.cli.options import ANY_NAMES, Command
from layerlimit.cli.output import columns
from layerlimit.cli.settings import Settings
from layerlimit.driver import Driver
from layerlimit.errors import Error, NotFound
from layerlimit.limit import format_size

_HEADER = ("NAME", "LIMIT", "USED", "AVAIL", "USE%", "INODES", "IUSED", "IUSE%")
_NUMBERS = tuple(range(1, len(_HEADER)))


@click.command("df", cls=Command, short_help="Show how much of their limits layers use.")
@ANY_NAMES
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...]) -> None:
    """Show limit and use of the layers NAME, or of all that have a limit.

    A layer without one is measured by a walk through its files, and only when it is named.
    """
    if not names and not settings.has_layers():
        settings.say(f"there are no layers in {settings.root}")
        settings.show_all([], lambda: columns(_HEADER, []))
        return
    driver = settings.open_driver()
    entries = [_entry(driver, name) for name in names] if names else _limited(driver, settings)
    settings.show_all(entries, lambda: columns(_HEADER, map(_row, entries), right=_NUMBERS))


def _limited(driver: Driver, settings: Settings) -> list[dict[str, Any]]:
    found = []
    for id in driver.ids():
        try:
            if driver.limit(id) is not None:
                found.append(_entry(driver, id))
        except NotFound:
            continue  # removed meanwhile
        except Error as error:
            settings.say(f"{id} cannot be measured: {error}")
    return found


def _entry(driver: Driver, name: str) -> dict[str, Any]:
    limit, usage = driver.limit(name), driver.usage(name)
    return {
        "name": name,
        "limit": limit_entry(limit),
        "used": {"bytes": usage.bytes, "inodes": usage.inodes},
        "available": None if limit is None else {"bytes": max(limit.bytes - usage.bytes, 0)},
    }


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    limit, used = entry["limit"], entry["used"]
    if limit is None:
        return entry["name"], "none", format_size(used["bytes"]), "-", "-", "-", str(used["inodes"]), "-"
    return (
        entry["name"],
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
