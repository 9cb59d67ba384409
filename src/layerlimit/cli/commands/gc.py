"""``layerlimit gc``: delete what nothing references."""

from __future__ import annotations

import click

from layerlimit.cli.options import Command
from layerlimit.cli.settings import Settings


@click.command("gc", cls=Command, short_help="Delete what nothing references.")
@click.pass_obj
def command(settings: Settings) -> None:
    """Delete what removals and killed processes left. Every command does so; this one does only that.

    What cannot be deleted yet, and data that was moved to lost/, is said on stderr.
    """
    with settings.open_store() as store:
        notes = store.gc()
        for note in notes:
            settings.tell(note)
        settings.show({"notes": [*store.opened, *notes]})
