"""``layerlimit config``: how much limits may promise, and what new layers get."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

import click

from layerlimit.cli.config_file import check_file, show_default
from layerlimit.cli.options import Command
from layerlimit.cli.settings import Settings
from layerlimit.errors import InvalidArgument
from layerlimit.limit import format_size, parse_size
from layerlimit.store import Policy

_KEYS: Final = {"overcommit": "overcommit", "floor": "floor", "default-limit": "default_limit"}


@click.command(
    "config", cls=Command, short_help="Show or set how much limits may promise; check the daemon's file."
)
@click.argument("settings_given", metavar="[KEY=VALUE]... | default | check [FILE]", nargs=-1)
@click.pass_obj
def command(settings: Settings, settings_given: tuple[str, ...]) -> None:
    """Show what is configured, or set it for everybody who uses this store.

    \b
      overcommit=RATIO      limits may promise RATIO times the size of the disk  [default: 1]
      floor=SIZE            no writable layer is made with less than SIZE free   [default: 256MiB]
      default-limit=SIZE    for layers created without --limit, or 'none'        [default: none]

    Layers that are there stay as they are.

    'config default' prints the file of 'layerlimit serve' with its explanations; 'config check [FILE]' reads
    one as the daemon will  [default: /etc/layerlimit/config.toml].
    """
    match settings_given[:1]:
        case ("default",):
            show_default(settings_given[1:])
            return
        case ("check",):
            check_file(settings, settings_given[1:])
            return
    with settings.open_store(make=bool(settings_given)) as store:
        policy = store.policy
        for word in settings_given:
            policy = _changed(policy, word)
        if settings_given:
            store.configure(policy)
    settings.show(
        asdict(policy),
        f"overcommit={policy.overcommit:g}",
        f"floor={_size(policy.floor)}",
        f"default-limit={_size(policy.default_limit) if policy.default_limit else 'none'}",
    )


def _size(size: int) -> str:
    """As it can be given again: without the space, exact."""
    text = format_size(size).replace(" ", "")
    return text if parse_size(text) == size else str(size)


def _changed(policy: Policy, word: str) -> Policy:
    key, equals, text = word.partition("=")
    if not equals or key not in _KEYS:
        raise click.UsageError(f"{word!r} is not one of {', '.join(f'{key}=' for key in _KEYS)}")
    value: Any
    try:
        value = float(text) if key == "overcommit" else 0 if text in ("none", "0") else parse_size(text)
    except (ValueError, InvalidArgument) as error:
        raise click.UsageError(f"{word}: {error}") from error
    return replace(policy, **{_KEYS[key]: value})
