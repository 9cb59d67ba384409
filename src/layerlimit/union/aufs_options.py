"""AUFS mount options, cut into calls that the kernel reads whole.

A stack becomes one mount(2) with ``br:`` and as many remounts with ``append:`` as it takes. Two limits hold
for each call: the data is one page, cut silently beyond it, and AUFS keeps the parsed options in one page
too (``max_opt`` in fs/aufs/fsctx.c). On x86-64 that is 84 of them; the 85th crashes the kernel (measured on
aufs 6.1-20240701), so no call may ever have as many. Syntax: aufs(5).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from layerlimit.errors import InvalidArgument

OPTIONS_MAX: Final = 64  # per call; below the 84 that fit a page of 4096 bytes

# What separates branches, options and permissions; AUFS knows no escapes.
SPECIAL: Final = frozenset(":,=")


def writable(name: str) -> str:
    """A branch that takes the changes."""
    return f"{name}=rw"


def read_only(name: str) -> str:
    """A branch that is never written; its whiteouts count (``+wh``)."""
    return f"{name}=ro+wh"


def calls(branches: Sequence[str], tail: Sequence[str], *, room: int) -> list[str]:
    """The data of the mount and of each remount after it; none is longer than ``room`` bytes.

    ``tail`` are the further options of the first call. Raises InvalidArgument, before anything is mounted,
    when a branch does not fit even alone.
    """
    ending = "".join(f",{option}" for option in tail)
    space = room - len("br:") - _size(ending)
    end = _fitting(branches, 0, each=0, room=space, limit=OPTIONS_MAX - len(tail))
    found = ["br:" + ":".join(branches[:end]) + ending]
    while end < len(branches):
        start = end
        end = _fitting(branches, start, each=len("append:"), room=room, limit=OPTIONS_MAX)
        found.append(",".join(f"append:{branch}" for branch in branches[start:end]))
    return found


def _fitting(branches: Sequence[str], start: int, *, each: int, room: int, limit: int) -> int:
    """The index up to which branches fit ``room``: each with ``each`` bytes more, one between two of them."""
    used = -1
    for index in range(start, min(len(branches), start + limit)):
        used += 1 + each + _size(branches[index])
        if used > room:
            if index == start:
                break
            return index
    else:
        return min(len(branches), start + limit)
    raise InvalidArgument(
        f"the path {branches[start]!r} does not fit the page that the kernel reads mount options from",
        hint="use a root with a shorter path",
        code="aufs.page",
    )


def _size(text: str) -> int:
    return len(os.fsencode(text))
