"""The global options, accepted before and after the sub-command, and arguments that several have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from layerlimit.cli.settings import DEFAULT_NAMESPACE, DEFAULT_ROOT, FORMATS, LOG_LEVELS, Settings

INODES: Final = click.IntRange(min=1)


def _store(name: str, value: Any, ctx: click.Context) -> None:
    if value is not None and not ctx.resilient_parsing:
        setattr(ctx.find_root().ensure_object(Settings), name, value)


def global_options(*, hidden: bool) -> list[click.Option]:
    """The options that every command takes; where they are given twice, the later ones count."""

    def root(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        _store("root", None if value is None else Path(value).absolute(), ctx)

    def plain(ctx: click.Context, param: click.Parameter, value: object) -> None:
        _store(str(param.name), value, ctx)

    def quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        plain(ctx, param, value or None)

    return [
        click.Option(
            ["--root"],
            type=click.Path(path_type=str),
            envvar=None if hidden else "LAYERLIMIT_ROOT",
            metavar="DIR",
            help=f"Where layers are kept (environment: LAYERLIMIT_ROOT).  [default: {DEFAULT_ROOT}]",
            callback=root,
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["--namespace"],
            envvar=None if hidden else "LAYERLIMIT_NAMESPACE",
            metavar="NAME",
            help="Whose names are meant (environment: LAYERLIMIT_NAMESPACE).  "
            f"[default: {DEFAULT_NAMESPACE}]",
            callback=plain,
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["--format"],
            type=click.Choice(FORMATS),
            help="How to print.  [default: table]",
            callback=plain,
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            help="No messages on stderr but errors; 'ls -q' prints names only.",
            callback=quiet,
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["--log-level"],
            type=click.Choice(LOG_LEVELS),
            help="What to log to stderr.  [default: warning]",
            callback=plain,
            expose_value=False,
            hidden=hidden,
        ),
    ]


class Command(click.Command):
    """A sub-command; it accepts the global options, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=True)


def parse_labels(ctx: click.Context, _: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The labels that ``KEY=VALUE`` words give."""
    found = {}
    for word in values:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE", ctx)
        found[key] = value
    return found


LABELS: Final = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", callback=parse_labels, help="Label it."
)
NEW_NAME: Final = click.argument("new", metavar="NEWNAME")
NAME: Final = click.argument("name", metavar="NAME")
NAMES: Final = click.argument("names", metavar="NAME...", nargs=-1, required=True)
ANY_NAMES: Final = click.argument("names", metavar="[NAME...]", nargs=-1)
