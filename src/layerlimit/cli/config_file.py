"""``layerlimit config default|check``: the daemon's configuration file."""

from __future__ import annotations

from pathlib import Path

import click

from layerlimit.cli.output import write
from layerlimit.cli.settings import Settings
from layerlimit.daemon.config import DEFAULT_FILE, default_config, load_config


def show_default(words: tuple[str, ...]) -> None:
    """Print the documented default file."""
    if words:
        raise click.UsageError("'config default' takes nothing more")
    write(default_config().encode())


def check_file(settings: Settings, words: tuple[str, ...]) -> None:
    """Read a file as the daemon will; an error names file, key and cure."""
    if len(words) > 1:
        raise click.UsageError("'config check' takes one FILE")
    path = Path(words[0]) if words else DEFAULT_FILE
    config = load_config(path)
    names = ", ".join(each.name for each in config.snapshotters)
    settings.show({"file": str(path), "snapshotters": [each.name for each in config.snapshotters]})
    settings.say(f"{path} is valid; it serves {names}")
