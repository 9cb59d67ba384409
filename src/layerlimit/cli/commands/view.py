"""``layerlimit view``: a read-only view of a committed layer."""

from __future__ import annotations

import click

from layerlimit.cli.describe import summary
from layerlimit.cli.options import LABELS, NAME, Command
from layerlimit.cli.settings import Settings


@click.command("view", cls=Command, short_help="Make a read-only view of a committed layer.")
@NAME
@click.argument("parent", metavar="PARENT")
@LABELS
@click.pass_obj
def command(settings: Settings, name: str, parent: str, labels: dict[str, str]) -> None:
    """Make NAME a read-only view of the committed layer PARENT, which it keeps from being removed."""
    with settings.open_store() as store:
        info = store.view(name, parent, labels=labels)
        settings.say(f"created {name}, a view of {parent}")
        settings.show(summary(store, info))
