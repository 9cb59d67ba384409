"""``layerlimit inspect``: all about layers."""

from __future__ import annotations

from typing import Any

import click

from layerlimit.cli.describe import details
from layerlimit.cli.options import NAMES, Command
from layerlimit.cli.output import pairs, printable
from layerlimit.cli.settings import Settings
from layerlimit.limit import format_size


@click.command("inspect", cls=Command, short_help="Show all about layers.")
@NAMES
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...]) -> None:
    """Show all about layers: parents, limit, what enforces it and what can lift it, use, who holds it."""
    with settings.open_store() as store:
        entries = [details(store, name) for name in names]

    def table() -> list[str]:
        blocks = [pairs(_rows(entry)) for entry in entries]
        return [line for number, block in enumerate(blocks) for line in (["", *block] if number else block)]

    settings.show_all(entries, table)


def _rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    limit, usage, limiter = entry["limit"], entry["usage"], entry["limiter"]
    rows = [
        ("Name", printable(entry["name"])),
        ("Kind", entry["kind"] + ("" if entry["durable"] else ", committed without a sync")),
        ("Parents", ", ".join(map(printable, entry["chain"])) or "none: this is a base"),
        ("Children", ", ".join(map(printable, entry["children"])) or "none"),
        ("Created", entry["created"]),
        ("Id of its files", entry["id"]),
        ("Mounted", ", ".join(map(printable, entry["paths"])) or ("yes" if entry["mounted"] else "no")),
        ("Held by", f"mounts: {entry['holds']}, processes: {entry['processes']}"),
        ("Health", ": ".join(filter(None, (entry["health"]["state"], entry["health"]["why"])))),
    ]
    rows += [("Label", printable(f"{key}={value}")) for key, value in entry["labels"].items()]
    if entry["recovered"]:
        rows.append(("Recovered", f"{', '.join(map(printable, entry['recovered']))} in lost+found"))
    if limit is None:
        return [*rows, ("Limit", "none")]
    kinds = [kind for kind in ("ephemeral", "reserve") if limit[kind]]
    return [
        *rows,
        ("Limit", f"{_exact(limit['bytes'])}{''.join(f', {kind}' for kind in kinds)}"),
        ("Inodes", "in proportion" if limit["inodes"] is None else str(limit["inodes"])),
        ("Used", f"{_exact(usage['bytes'])}, {usage['inodes']} inodes"),
        ("Enforced by", f"{limiter['name']} {printable(limiter['file'])}"),
        ("On the disk", f"{format_size(limiter['host_bytes'])} of {format_size(limiter['file_bytes'])}"),
        ("Can be lifted by", limiter["lifted_by"]),
    ]


def _exact(size: int) -> str:
    return f"{format_size(size)} ({size} bytes)"
