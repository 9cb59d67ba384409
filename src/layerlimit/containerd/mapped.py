"""User namespaces: the labels that say how ids are mapped, and what that means for a mount and for a tar.

Where the snapshotter is configured with the capability ``remap-ids``, the mount has to map them.
Where it is not, containerd itself changes the owners of a copy of the image, and gives the labels
all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from layerlimit.errors import InvalidArgument

_UIDS: Final = "containerd.io/snapshot/uidmapping"
_GIDS: Final = "containerd.io/snapshot/gidmapping"
_MOST: Final = 1 << 32
_NOBODY: Final = 65534  # what the kernel shows of an id that is not mapped: overflowuid(5)

Map = tuple[tuple[int, int, int], ...]  # first id inside, first one outside, how many


def mapping_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The options ``uidmap=`` and ``gidmap=`` for a mount, none without the labels."""
    if not mapped_root(labels):
        return ()
    return (f"uidmap={labels[_UIDS]}", f"gidmap={labels[_GIDS]}")


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """The uid and gid outside that are 0 inside; None without the labels, InvalidArgument for bad ones."""
    found = _maps(labels)
    return None if found is None else (_root(found[0]), _root(found[1]))


def owners_inside(labels: Mapping[str, str]) -> Callable[[int, int], tuple[int, int]] | None:
    """What the container sees of the uid and gid of a file that it wrote; None without the labels."""
    found = _maps(labels)
    if found is None:
        return None
    uids, gids = found
    return lambda uid, gid: (_inside(uids, uid), _inside(gids, gid))


def _maps(labels: Mapping[str, str]) -> tuple[Map, Map] | None:
    given = [key for key in (_UIDS, _GIDS) if labels.get(key)]
    if not given:
        return None
    if len(given) == 1:
        raise InvalidArgument(
            f"the label {given[0]} is there alone",
            hint=f"give both {_UIDS} and {_GIDS}",
            code="mapping.invalid",
        )
    return _map(_UIDS, labels[_UIDS]), _map(_GIDS, labels[_GIDS])


def _map(key: str, text: str) -> Map:
    found = []
    for part in text.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(n.isascii() and n.isdigit() and len(n) <= 10 for n in numbers):
            raise _bad(key, text)
        inside, outside, length = map(int, numbers)
        if not length or inside + length > _MOST or outside + length > _MOST:
            raise _bad(key, text)
        found.append((inside, outside, length))
    if not any(inside == 0 for inside, _, _ in found):
        raise _bad(key, text)
    return tuple(found)


def _root(ids: Map) -> int:
    return next(outside for inside, outside, _ in reversed(ids) if inside == 0)


def _inside(ids: Map, id: int) -> int:
    return next((id - outside + inside for inside, outside, n in ids if outside <= id < outside + n), _NOBODY)


def _bad(key: str, text: str) -> InvalidArgument:
    return InvalidArgument(
        f"the label {key}={text:.120} is no mapping of ids",
        hint="write CONTAINER:HOST:LENGTH, several joined by commas, one of them from 0",
        code="mapping.invalid",
    )
