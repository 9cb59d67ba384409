"""``layerlimit resize``: raise a limit."""

from __future__ import annotations

import click

from layerlimit.cli.describe import limit_text, summary
from layerlimit.cli.options import INODES, NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.limit import Limit, parse_size


@click.command("resize", cls=Command, short_help="Raise the limit of a layer.")
@NAME
@click.argument("size", metavar="SIZE", type=parse_size)
@click.option("--inodes", type=INODES, help="How many files and directories; without, as many as before.")
@click.pass_obj
def command(settings: Settings, name: str, size: int, inodes: int | None) -> None:
    """Raise the limit of the layer NAME to SIZE, mounted or not; processes inside see it at once.

    Growing a mounted layer needs CAP_SYS_RESOURCE; without it, unmount the layer first. A limit only grows.
    """
    with settings.open_store() as store:
        store.resize(name, Limit(size, inodes))
        settings.say(f"{name} has a limit of {limit_text(store.limit(name))} now")
        settings.show(summary(store, store.stat(name)))
