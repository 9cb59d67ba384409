"""``layerlimit tree``: which layer stands on which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from layerlimit.cli.describe import limit_text, parents
from layerlimit.cli.options import Command
from layerlimit.cli.settings import Settings
from layerlimit.driver import Driver
from layerlimit.errors import Error


@click.command("tree", cls=Command, short_help="Show which layer stands on which.")
@click.pass_obj
def command(settings: Settings) -> None:
    """Show the layers below their parents, each with its limit.

    JSON is a flat list in the order of the tree, with the depth of each layer.
    """
    if not settings.has_layers():
        settings.say(f"there are no layers in {settings.root}")
        settings.show_all([], list)
        return
    driver = settings.open_driver()
    found = list(_walk(parents(driver)))
    entries = [{"name": id, "parent": parent or None, "depth": len(lasts)} for id, parent, lasts in found]
    settings.show_all(
        entries, lambda: [f"{_branch(lasts)}{id}  {_note(driver, id)}".rstrip() for id, _, lasts in found]
    )


def _walk(parent_of: dict[str, str]) -> Iterator[tuple[str, str, tuple[bool, ...]]]:
    """Each layer before its children, with, for every level, whether it is the last child there."""
    children: dict[str, list[str]] = {}
    for id, parent in sorted(parent_of.items()):
        children.setdefault(parent if parent in parent_of else "", []).append(id)
    stack: list[tuple[str, tuple[bool, ...]]] = [(id, ()) for id in reversed(children.get("", []))]
    while stack:
        id, lasts = stack.pop()
        yield id, parent_of[id], lasts
        below: list[Any] = children.get(id, [])
        stack += [(child, (*lasts, child == below[-1])) for child in reversed(below)]


def _branch(lasts: tuple[bool, ...]) -> str:
    if not lasts:
        return ""
    return "".join("   " if last else "│  " for last in lasts[:-1]) + ("└─ " if lasts[-1] else "├─ ")


def _note(driver: Driver, id: str) -> str:
    try:
        limit = driver.limit(id)
    except Error as error:
        return f"damaged: {error.message}"
    return "" if limit is None else limit_text(limit)
