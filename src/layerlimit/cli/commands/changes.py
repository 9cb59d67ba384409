"""``layerlimit changes``: what a layer changes."""

from __future__ import annotations

import click

from layerlimit.cli.options import NAME, Command
from layerlimit.cli.output import printable
from layerlimit.cli.settings import Settings


@click.command("changes", cls=Command, short_help="List what a layer adds, changes and deletes.")
@NAME
@click.pass_obj
def command(settings: Settings, name: str) -> None:
    """List what the layer NAME adds (A), changes (C) and deletes (D) over its parent, sorted by path.

    Control characters in names are printed as \\xNN; JSON has names exactly.
    """
    with settings.open_store() as store:
        found = store.changes(name)
    settings.show_all(
        [{"kind": str(change.kind), "path": change.path} for change in found],
        lambda: (f"{change.kind} {printable(change.path)}" for change in found),
    )
