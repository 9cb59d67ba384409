"""``layerlimit check``: compare what is recorded with what is there."""

from __future__ import annotations

from typing import Any, Final

import click

from layerlimit.cli.options import Command
from layerlimit.cli.output import columns, printable
from layerlimit.cli.settings import Settings
from layerlimit.errors import Corrupt
from layerlimit.store import Finding, check_root

_HEADER: Final = ("CODE", "SUBJECT", "REPAIRED", "MESSAGE", "REPAIR")


@click.command("check", cls=Command, short_help="Find, and repair, what is not as it should be.")
@click.option("--repair", is_flag=True, help="Put right what can be derived; user data is never deleted.")
@click.option("--force", is_flag=True, help="With --repair: also forget layers whose files are gone.")
@click.option("--quick", is_flag=True, help="Read neither file systems nor the content of files.")
@click.pass_obj
def command(settings: Settings, repair: bool, force: bool, quick: bool) -> int:
    """Compare names, layers, images, mounts and loop devices with each other.

    For each finding it says what --repair would do; without --repair nothing is changed. It also works when
    the database is missing or damaged: --repair rebuilds it from the layers, while nothing else uses them.
    The exit code is 0 when nothing was found, or everything was repaired; else 9.
    """
    if force and not repair:
        raise click.UsageError("--force needs --repair", click.get_current_context())
    if not settings.has_layers():
        settings.say(f"there are no layers in {settings.root}")
        settings.show_all([], list)
        return 0
    found = list(check_root(settings.root, repair=repair, force=force, quick=quick))
    settings.show_all(
        [_entry(each) for each in found], lambda: columns(_HEADER, map(_row, found)) if found else []
    )
    left = sum(not each.repaired for each in found)
    settings.say(f"{len(found)} found, {len(found) - left} repaired" if found else "nothing was found")
    return Corrupt.exit_code if left else 0


def _row(finding: Finding) -> tuple[str, ...]:
    repaired = "yes" if finding.repaired else "no"
    return (
        finding.code,
        printable(finding.subject),
        repaired,
        printable(finding.message),
        finding.repair or "by hand",
    )


def _entry(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "layer": finding.layer or None,
        "subject": finding.subject,
        "message": finding.message,
        "repair": finding.repair or None,
        "repaired": finding.repaired,
    }
