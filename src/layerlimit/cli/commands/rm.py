"""``layerlimit rm``: remove layers."""

from __future__ import annotations

import click

from layerlimit.cli.describe import chain
from layerlimit.cli.failure import report
from layerlimit.cli.options import NAMES, Command
from layerlimit.cli.settings import Settings
from layerlimit.driver import Driver
from layerlimit.errors import Error, NotFound


@click.command("rm", cls=Command, short_help="Remove layers.")
@NAMES
@click.option(
    "-f", "--force", is_flag=True, help="Also unmount mounted layers; one that is not there is no error."
)
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], force: bool) -> int:
    """Remove layers, children before their parents whatever the order.

    One that is mounted, in use, or a parent of others is kept and reported; the rest is removed. The exit
    code is that of the first one that was not.
    """
    if force and not settings.has_layers():
        return 0
    driver = settings.open_driver()
    code = 0
    removed = []
    for name in sorted(dict.fromkeys(names), key=lambda name: -_depth(driver, name)):
        try:
            driver.remove(name, force=force)
            removed.append(name)
        except NotFound as error:
            if not force:
                code = code or report(error, settings)
        except Error as error:
            code = code or error.exit_code
            report(error, settings)
    settings.show({"removed": removed})
    return code


def _depth(driver: Driver, name: str) -> int:
    try:
        return len(chain(driver, name))
    except Error:
        return 0  # the removal says what is wrong
