"""``layerlimit ls``: which layers there are."""

from __future__ import annotations

from typing import Any

import click

from layerlimit.cli.describe import summary
from layerlimit.cli.options import Command
from layerlimit.cli.output import columns, printable
from layerlimit.cli.settings import Settings
from layerlimit.limit import format_size

_HEADER = ("NAME", "KIND", "PARENT", "LIMIT", "MOUNTED")


@click.command("ls", cls=Command, short_help="List the layers.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Only those that match it.")
@click.pass_obj
def command(settings: Settings, filters: tuple[str, ...]) -> None:
    """List the layers: name, kind, parent, limit, and whether each is mounted.

    \b
    A FILTER is one of containerd's; given several times, one must match:
      kind==active,parent==debian         both
      name~=/^job-/                       a regular expression
      labels."team"==web                  a label
    """
    if not settings.has_layers():
        settings.say(f"there are no layers in {settings.root}")
        settings.show_all([], lambda: [] if settings.quiet else columns(_HEADER, []))
        return
    with settings.open_store() as store:
        infos = store.ls(*filters)
        if settings.quiet and settings.format == "table":
            settings.show_all([], lambda: [printable(info.name) for info in infos])
            return
        entries = [summary(store, info) for info in infos]
    for entry in entries:
        if "error" in entry:
            settings.say(f"{entry['name']} is damaged: {entry['error']['message']}")

    settings.show_all(entries, lambda: columns(_HEADER, map(_row, entries)))


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    limit = format_size(entry["limit"]["bytes"]) if entry["limit"] else "none"
    return (
        printable(entry["name"]),
        entry["kind"],
        printable(entry["parent"] or "-"),
        "damaged" if "error" in entry else limit,
        "yes" if entry["mounted"] else "no",
    )
