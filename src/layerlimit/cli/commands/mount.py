"""``layerlimit mount``: mount a layer until ``umount``."""

from __future__ import annotations

import click

from layerlimit.cli.options import NAME, Command
from layerlimit.cli.settings import Settings


@click.command("mount", cls=Command, short_help="Mount a layer and print where.")
@NAME
@click.option(
    "--read-only", is_flag=True, help="Mount a view that cannot be written, beside the layer's own."
)
@click.pass_obj
def command(settings: Settings, name: str, read_only: bool) -> None:
    """Mount the layer NAME and print the path.

    Each mount needs one umount; the last one unmounts. Mounts outlive this command and end with the boot.
    Committed layers and views are always mounted read-only.
    """
    with settings.open_store() as store:
        read_only = read_only or not store.stat(name).writable
        path = store.mount(name, read_only=read_only)
    settings.show({"name": name, "path": str(path), "read_only": read_only}, str(path))
