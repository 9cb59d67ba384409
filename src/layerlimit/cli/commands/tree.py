"""``layerlimit tree``: which layer stands on which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from layerlimit.cli.describe import limit_text
from layerlimit.cli.options import Command
from layerlimit.cli.output import printable
from layerlimit.cli.settings import Settings
from layerlimit.errors import Error
from layerlimit.store import Info, Store


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
    with settings.open_store() as store:
        infos = {info.name: info for info in store.ls()}
        found = list(_walk(infos))
        notes = {name: _note(store, info) for name, info in infos.items()}
    entries = [
        {
            "name": name,
            "kind": str(infos[name].kind),
            "parent": infos[name].parent or None,
            "depth": len(lasts),
        }
        for name, lasts in found
    ]
    settings.show_all(
        entries,
        lambda: [f"{_branch(lasts)}{printable(name)}  {notes[name]}".rstrip() for name, lasts in found],
    )


def _walk(infos: dict[str, Info]) -> Iterator[tuple[str, tuple[bool, ...]]]:
    """Each layer before its children, with, for every level, whether it is the last child there."""
    children: dict[str, list[str]] = {}
    for name, info in infos.items():
        children.setdefault(info.parent, []).append(name)
    stack: list[tuple[str, tuple[bool, ...]]] = [(name, ()) for name in reversed(children.get("", []))]
    while stack:
        name, lasts = stack.pop()
        yield name, lasts
        below: list[Any] = children.get(name, [])
        stack += [(child, (*lasts, child == below[-1])) for child in reversed(below)]


def _branch(lasts: tuple[bool, ...]) -> str:
    if not lasts:
        return ""
    return "".join("   " if last else "│  " for last in lasts[:-1]) + ("└─ " if lasts[-1] else "├─ ")


def _note(store: Store, info: Info) -> str:
    try:
        limit = store.limit_of(info)
    except Error as error:
        return f"damaged: {error.message}"
    return "" if limit is None else limit_text(limit)
