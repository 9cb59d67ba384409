"""``layerlimit label``: set and delete labels."""

from __future__ import annotations

import click

from layerlimit.cli.describe import summary
from layerlimit.cli.options import NAME, Command, parse_labels
from layerlimit.cli.output import printable
from layerlimit.cli.settings import Settings


@click.command("label", cls=Command, short_help="Set and delete labels of a layer.")
@NAME
@click.argument("labels", metavar="[KEY=VALUE|KEY=]...", nargs=-1, callback=parse_labels)
@click.pass_obj
def command(settings: Settings, name: str, labels: dict[str, str]) -> None:
    """Set labels of the layer NAME, delete those with an empty value, and print what there is."""
    with settings.open_store() as store:
        info = store.update(name, labels, only=labels) if labels else store.stat(name)
        settings.show(
            summary(store, info), *(printable(f"{key}={value}") for key, value in info.labels.items())
        )
