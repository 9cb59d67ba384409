"""``layerlimit migrate``: take over a root of the Go driver."""

from __future__ import annotations

from pathlib import Path

import click

from layerlimit.cli.options import Command
from layerlimit.cli.settings import Settings, require_root


@click.command("migrate", cls=Command, short_help="Convert a root directory of the Go driver.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--owner-shift",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Take N from every owner at or above it; the Go driver's shift was 100000.",
)
@click.pass_obj
def command(settings: Settings, directory: Path, dry_run: bool, owner_shift: int) -> None:
    """Convert the AUFS layers that the Go driver left in DIR, in place, for overlay.

    Each layer gets its id as its name, and is committed if it has children. Interrupted, it goes on when it
    is run again. The lines of /etc/fstab that are to be deleted are printed
    on stdout; the file is not touched.
    """
    from layerlimit.driver import adopt
    from layerlimit.store import Store

    require_root()
    done = adopt(directory, dry_run=dry_run, owner_shift=owner_shift)
    if not dry_run:
        Store(directory).close()  # the first one names the layers
    verb = "would convert" if dry_run else "converted"
    markers = f", {done.markers} whiteouts and opaque marks" if done.markers else ""
    settings.say(f"{verb} {len(done.layers)} layers, {len(done.limited)} of them limited{markers}")
    if done.fstab:
        settings.say("delete these lines from /etc/fstab:")
    settings.show(
        {
            "root": str(directory.absolute()),
            "dry_run": dry_run,
            "layers": done.layers,
            "limited": done.limited,
            "markers": done.markers,
            "fstab": done.fstab,
        },
        *done.fstab,
    )
