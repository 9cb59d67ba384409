"""``layerlimit resize``: change a limit."""

from __future__ import annotations

import click

from layerlimit.cli.describe import limit_text, summary
from layerlimit.cli.options import INODES, NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.errors import InvalidArgument
from layerlimit.limit import Limit, parse_size


def _size(text: str) -> int | None:
    return None if text == "none" else parse_size(text)


@click.command("resize", cls=Command, short_help="Change the limit of a layer.")
@NAME
@click.argument("size", metavar="SIZE", type=_size)
@click.option("--inodes", type=INODES, help="How many files and directories; without, as many as before.")
@click.pass_obj
def command(settings: Settings, name: str, size: int | None, inodes: int | None) -> None:
    """Change the limit of the layer NAME to SIZE, or take it away with 'none'.

    More is given mounted or not, and processes inside see it at once; growing a mounted layer needs
    CAP_SYS_RESOURCE. For less, or to give a layer its first limit, unmount it first.
    """
    if size is None and inodes is not None:
        raise InvalidArgument("without a limit there are no --inodes", hint="leave one of them out")
    with settings.open_store() as store:
        store.resize(name, None if size is None else Limit(size, inodes))
        settings.say(f"{name} has a limit of {limit_text(store.limit(name))} now")
        settings.show(summary(store, store.stat(name)))
        store.reaper.run(everywhere=False)
