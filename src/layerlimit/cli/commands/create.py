"""``layerlimit create``: a new layer."""

from __future__ import annotations

import click

from layerlimit.cli.describe import limit_text, summary
from layerlimit.cli.options import INODES, NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.limit import Limit, parse_size


@click.command("create", cls=Command, short_help="Make a layer, writable up to a limit.")
@NAME
@click.option("-p", "--parent", default="", metavar="NAME", help="The layer it is put over; without, a base.")
@click.option(
    "-l",
    "--limit",
    "size",
    type=parse_size,
    metavar="SIZE",
    help="How many bytes may be written: 512m, 10GiB.",
)
@click.option(
    "--inodes", type=INODES, help="How many files and directories; without, it goes with the bytes."
)
@click.option(
    "--ephemeral", is_flag=True, help="Without a journal: faster, may be lost when the machine crashes."
)
@click.option("--reserve", is_flag=True, help="Take all the space from the disk now.")
@click.pass_obj
def command(
    settings: Settings,
    name: str,
    parent: str,
    size: int | None,
    inodes: int | None,
    ephemeral: bool,
    reserve: bool,
) -> None:
    """Make the layer NAME over another one, writable up to a limit; or a base.

    Without --limit it can fill the disk.
    """
    limit = limit_of(size, inodes, ephemeral, reserve)
    driver = settings.open_driver(make=True)
    driver.create(name, parent, limit=limit)
    over = f" over {parent}" if parent else ""
    settings.say(f"created {name}{over}, limit {limit_text(limit)}")
    settings.show(summary(driver, name))


def limit_of(size: int | None, inodes: int | None, ephemeral: bool, reserve: bool) -> Limit | None:
    """The limit that these options ask for; a usage error for what makes no sense without ``--limit``."""
    if size is not None:
        return Limit(size, inodes, ephemeral, reserve)
    given = {"--inodes": inodes is not None, "--ephemeral": ephemeral, "--reserve": reserve}
    for option, is_given in given.items():
        if is_given:
            raise click.UsageError(f"{option} needs --limit", click.get_current_context())
    return None
