"""User namespaces: the labels that say how ids are mapped, and what that means for a mount.

Containerd gives them where the snapshotter is configured with the capability ``remap-ids``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from layerlimit.errors import InvalidArgument

_UIDS: Final = "containerd.io/snapshot/uidmapping"
_GIDS: Final = "containerd.io/snapshot/gidmapping"
_MOST: Final = 1 << 32


def mapping_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The options ``uidmap=`` and ``gidmap=`` for a mount, none without the labels."""
    if not mapped_root(labels):
        return ()
    return (f"uidmap={labels[_UIDS]}", f"gidmap={labels[_GIDS]}")


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """The uid and gid outside that are 0 inside; None without the labels, InvalidArgument for bad ones."""
    given = [key for key in (_UIDS, _GIDS) if labels.get(key)]
    if not given:
        return None
    if len(given) == 1:
        raise InvalidArgument(
            f"the label {given[0]} is there alone",
            hint=f"give both {_UIDS} and {_GIDS}",
            code="mapping.invalid",
        )
    return _root(_UIDS, labels[_UIDS]), _root(_GIDS, labels[_GIDS])


def _root(key: str, text: str) -> int:
    root = None
    for part in text.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(n.isascii() and n.isdigit() and len(n) <= 10 for n in numbers):
            raise _bad(key, text)
        inside, outside, length = map(int, numbers)
        if not length or inside + length > _MOST or outside + length > _MOST:
            raise _bad(key, text)
        if inside == 0:
            root = outside
    if root is None:
        raise _bad(key, text)
    return root


def _bad(key: str, text: str) -> InvalidArgument:
    return InvalidArgument(
        f"the label {key}={text:.120} is no mapping of ids",
        hint="write CONTAINER:HOST:LENGTH, several joined by commas, one of them from 0",
        code="mapping.invalid",
    )
