"""``layerlimit umount``: undo one ``mount``."""

from __future__ import annotations

import click

from layerlimit.cli.options import NAME, Command
from layerlimit.cli.settings import Settings


@click.command("umount", cls=Command, short_help="Undo one mount of a layer.")
@NAME
@click.option("--read-only", is_flag=True, help="Undo a mount that was made with --read-only.")
@click.pass_obj
def command(settings: Settings, name: str, read_only: bool) -> None:
    """Undo one mount of the layer NAME; the last one unmounts it.

    A layer that is not mounted is left as it is.
    """
    with settings.open_store() as store:
        if not store.state(name).mounted:
            settings.say(f"{name} is not mounted")
        store.umount(name, read_only=read_only)
        after = store.state(name)
    if after.mounted:
        settings.say(f"{name} is still mounted (mounts: {after.holds}, processes: {after.processes})")
    settings.show(
        {"name": name, "mounted": after.mounted, "holds": after.holds, "processes": after.processes}
    )
