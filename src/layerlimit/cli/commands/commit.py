"""``layerlimit commit``: freeze a layer."""

from __future__ import annotations

import click

from layerlimit.cli.describe import summary
from layerlimit.cli.options import LABELS, NAME, NEW_NAME, Command
from layerlimit.cli.settings import Settings


@click.command("commit", cls=Command, short_help="Freeze a layer under a new name.")
@NAME
@NEW_NAME
@click.option(
    "--no-sync", is_flag=True, help="Do not wait for the disk: faster, may be lost when the machine crashes."
)
@LABELS
@click.pass_obj
def command(settings: Settings, name: str, new: str, no_sync: bool, labels: dict[str, str]) -> None:
    """Freeze the writable layer NAME under the name NEWNAME: from then on it can be a parent.

    Nothing is copied. The layer must not be mounted; its labels are replaced by those given.
    """
    with settings.open_store() as store:
        info = store.commit(name, new, labels=labels, durable=not no_sync)
        settings.say(f"committed {name} as {new}")
        settings.show(summary(store, info))
