"""``layerlimit rename``: another name for a layer."""

from __future__ import annotations

import click

from layerlimit.cli.describe import summary
from layerlimit.cli.options import NAME, NEW_NAME, Command
from layerlimit.cli.settings import Settings


@click.command("rename", cls=Command, short_help="Give a layer another name.")
@NAME
@NEW_NAME
@click.pass_obj
def command(settings: Settings, name: str, new: str) -> None:
    """Call the layer NAME from now on NEWNAME; its children and mounts do not notice."""
    with settings.open_store() as store:
        info = store.rename(name, new)
        settings.say(f"renamed {name} to {new}")
        settings.show(summary(store, info))
