"""``layerlimit create``: a new layer."""

from __future__ import annotations

import click

from layerlimit.cli.describe import limit_text, summary
from layerlimit.cli.options import INODES, LABELS, NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.limit import Limit, parse_size

_NONE = -1


def _size_or_none(text: str) -> int:
    """A size, or ``none``."""
    return _NONE if text == "none" else parse_size(text)


@click.command("create", cls=Command, short_help="Make a layer, writable up to a limit.")
@NAME
@click.option("-p", "--parent", default="", metavar="NAME", help="The committed layer that it is put over.")
@click.option(
    "-l",
    "--limit",
    "size",
    type=_size_or_none,
    metavar="SIZE",
    help="How many bytes may be written: 512m, 10GiB; or 'none'.",
)
@click.option(
    "--inodes", type=INODES, help="How many files and directories; without, it goes with the bytes."
)
@click.option(
    "--ephemeral", is_flag=True, help="Without a journal: faster, may be lost when the machine crashes."
)
@click.option("--reserve", is_flag=True, help="Take all the space from the disk now.")
@LABELS
@click.pass_obj
def command(
    settings: Settings,
    name: str,
    parent: str,
    size: int | None,
    inodes: int | None,
    ephemeral: bool,
    reserve: bool,
    labels: dict[str, str],
) -> None:
    """Make the layer NAME over a committed one, or over nothing; writable up to a limit.

    Without --limit it gets the default that 'layerlimit config' shows; where there is none, it can fill the
    disk.
    """
    limit = limit_of(None if size == _NONE else size, inodes, ephemeral, reserve)
    with settings.open_store(make=True) as store:
        info = store.create(name, parent, limit=limit, unlimited=size == _NONE, labels=labels)
        over = f" over {parent}" if parent else ""
        settings.say(f"created {name}{over}, limit {limit_text(store.limit(name))}")
        settings.show(summary(store, info))


def limit_of(size: int | None, inodes: int | None, ephemeral: bool, reserve: bool) -> Limit | None:
    """The limit that these options ask for; a usage error for what makes no sense without ``--limit``."""
    if size is not None:
        return Limit(size, inodes, ephemeral, reserve)
    given = {"--inodes": inodes is not None, "--ephemeral": ephemeral, "--reserve": reserve}
    for option, is_given in given.items():
        if is_given:
            raise click.UsageError(f"{option} needs --limit", click.get_current_context())
    return None
