"""``layerlimit setup``: tell containerd and Docker of the daemon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from layerlimit.cli.options import Command
from layerlimit.cli.output import write
from layerlimit.cli.settings import DEFAULT_ROOT, Settings
from layerlimit.daemon.config import override, read_config
from layerlimit.setup import (
    Edit,
    Stanzas,
    apply_edit,
    containerd_version,
    read_text,
    set_up_containerd,
    set_up_docker,
    undo_containerd,
    undo_docker,
)
from layerlimit.setup.idmapped import takes_mapped_layers

_CONTAINERD: Final = Path("/etc/containerd/config.toml")
_DOCKER: Final = Path("/etc/docker/daemon.json")


@click.group("setup", no_args_is_help=False, short_help="Tell containerd or Docker of the daemon.")
def command() -> None:
    """Write what containerd or Docker has to know of 'layerlimit serve' into its configuration.

    The change is shown first and made when you say yes; a copy of the file is kept. Nothing is restarted.
    """


def _common(default: Path) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    options = [
        click.option(
            "--config",
            "path",
            type=click.Path(path_type=Path, dir_okay=False),
            default=default,
            show_default=True,
            help="The file to change.",
        ),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only show what would change."),
        click.option("--remove", is_flag=True, help="Take it out again."),
    ]

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@command.command("containerd", cls=Command)
@_common(_CONTAINERD)
@click.option(
    "--address", metavar="PATH", help="The daemon's socket.  [default: as the daemon is configured]"
)
@click.option(
    "--snapshotter",
    "snapshotters",
    multiple=True,
    metavar="NAME",
    help="A name to be known by, repeatable.  [default: as the daemon is configured]",
)
@click.option("--default", is_flag=True, help="Make the first name what Kubernetes (CRI) uses for all pods.")
@click.option("--runtimes", is_flag=True, help="Add a CRI runtime per name, for RuntimeClasses.")
@click.option(
    "--differ", is_flag=True, help="Have images unpacked by layerlimit, too (containerd 1.7 or later)."
)
@click.pass_obj
def containerd(
    settings: Settings,
    path: Path,
    address: str | None,
    snapshotters: tuple[str, ...],
    default: bool,
    runtimes: bool,
    differ: bool,
    yes: bool,
    dry_run: bool,
    remove: bool,
) -> None:
    """Write the stanzas for containerd 1.6, 1.7 or 2.x, whichever is installed."""
    daemon = override(read_config(), address=address, snapshotters=tuple(dict.fromkeys(snapshotters)))
    names = tuple(each.name for each in daemon.snapshotters)
    text = read_text(path)
    if remove:
        edit = undo_containerd(path, text, names)
    else:
        root = daemon.root if settings.root == Path(DEFAULT_ROOT) else str(settings.root)
        stanzas = Stanzas(
            names,
            daemon.address,
            root,
            default=default,
            runtimes=runtimes,
            differ=differ,
            remap_ids=takes_mapped_layers(Path(root)),
        )
        edit = set_up_containerd(path, text, stanzas, installed=containerd_version())
    _carry_out(settings, edit, yes=yes, dry_run=dry_run)


@command.command("docker", cls=Command)
@_common(_DOCKER)
@click.option("--snapshotter", metavar="NAME", help="The name.  [default: the daemon's first]")
@click.pass_obj
def docker(
    settings: Settings, path: Path, snapshotter: str | None, yes: bool, dry_run: bool, remove: bool
) -> None:
    """Make Docker 24 or later keep all containers in our snapshotter."""
    name = override(read_config(), snapshotters=(snapshotter,) if snapshotter else ()).snapshotters[0].name
    text = read_text(path)
    edit = undo_docker(path, text, name) if remove else set_up_docker(path, text, name)
    _carry_out(settings, edit, yes=yes, dry_run=dry_run)


def _carry_out(settings: Settings, edit: Edit, *, yes: bool, dry_run: bool) -> None:
    backup = None
    written = False
    if edit.changed:
        if settings.format == "table":
            write(edit.diff().encode())
        if not dry_run:
            if not yes:
                _ask(edit.path)
            backup = apply_edit(edit)
            written = True
    if not edit.changed:
        settings.say(f"{edit.path} says so already: nothing to change")
    elif written:
        kept = f"; the old one is {backup}" if backup else ""
        settings.say(f"changed {edit.path}{kept}")
        for note in edit.notes:
            settings.say(note)
    if settings.format != "table":
        settings.show(
            {
                "file": str(edit.path),
                "changed": edit.changed,
                "written": written,
                "diff": edit.diff(),
                "backup": str(backup) if backup else None,
                "notes": list(edit.notes),
            }
        )


def _ask(path: Path) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(f"there is nobody to ask whether to change {path}: give --yes or --dry-run")
    if not click.confirm(f"Change {path}?", err=True):
        raise click.Abort
