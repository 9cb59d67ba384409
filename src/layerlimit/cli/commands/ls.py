"""``layerlimit ls``: which layers there are."""

from __future__ import annotations

import click

from layerlimit.cli.describe import summary
from layerlimit.cli.options import Command
from layerlimit.cli.output import columns
from layerlimit.cli.settings import Settings
from layerlimit.limit import format_size


@click.command("ls", cls=Command, short_help="List the layers.")
@click.pass_obj
def command(settings: Settings) -> None:
    """List the layers: name, parent, limit, and whether each is mounted."""
    if not settings.has_layers():
        settings.say(f"there are no layers in {settings.root}")
        settings.show_all([], lambda: [] if settings.quiet else columns(_HEADER, []))
        return
    driver = settings.open_driver()
    entries = [summary(driver, id) for id in driver.ids()]
    for entry in entries:
        if "error" in entry:
            settings.say(f"{entry['name']} is damaged: {entry['error']['message']}")

    def table() -> list[str]:
        if settings.quiet:
            return [entry["name"] for entry in entries]
        rows = [
            (
                entry["name"],
                entry["parent"] or "-",
                "damaged"
                if "error" in entry
                else format_size(entry["limit"]["bytes"])
                if entry["limit"]
                else "none",
                "yes" if entry["mounted"] else "no",
            )
            for entry in entries
        ]
        return list(columns(_HEADER, rows))

    settings.show_all(entries, table)


_HEADER = ("NAME", "PARENT", "LIMIT", "MOUNTED")
