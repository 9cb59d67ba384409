"""``layerlimit apply``: a layer tar into a layer."""

from __future__ import annotations

import click

from layerlimit.cli.options import NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.cli.source import open_tar
from layerlimit.limit import format_size


@click.command("apply", cls=Command, short_help="Apply a layer tar to a layer.")
@NAME
@click.argument("source", metavar="[FILE|-]", default="-")
@click.pass_obj
def command(settings: Settings, name: str, source: str) -> None:
    """Apply a layer tar, from stdin unless a file is given, to the layer NAME.

    It may be compressed. The layer has all of it at the end, or is as it was.
    """
    with settings.open_store() as store, open_tar(source) as stream:
        applied = store.apply(name, stream)
    for warning in applied.warnings:
        settings.say(f"left out: {warning}")
    settings.say(f"applied {applied.entries} entries, {format_size(applied.bytes)}, to {name}")
    settings.show(
        {
            "name": name,
            "bytes": applied.bytes,
            "entries": applied.entries,
            "diff_id": applied.diff_id,
            "skipped": applied.skipped,
            "warnings": applied.warnings,
        }
    )
