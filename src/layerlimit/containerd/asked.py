"""The limit that somebody asked for: read from labels and annotations, and chosen among several.

A value that is no limit is InvalidArgument, which names where it stands; it is never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from layerlimit.errors import InvalidArgument
from layerlimit.limit import Limit, format_size, parse_size

MAX_SIZE: Final = "containerd.io/snapshot/max-size"
SIZE: Final = "layerlimit/size"
INODES: Final = "layerlimit/inodes"
KEYS: Final = frozenset({MAX_SIZE, SIZE, INODES})


@dataclass(frozen=True, slots=True)
class Asked:
    """Bytes and inodes that one place asks for; None where it says nothing."""

    size: int | None = None
    inodes: int | None = None


def read_asked(labels: Mapping[str, str], where: str = "label") -> Asked:
    """What labels ask for; those with other keys are passed over. ``where`` is what an error calls them."""
    sizes = {key: read_size(labels[key], f"{where} {key}") for key in (MAX_SIZE, SIZE) if labels.get(key)}
    if len(set(sizes.values())) > 1:
        raise InvalidArgument(
            f"the {where}s {MAX_SIZE}={labels[MAX_SIZE]} and {SIZE}={labels[SIZE]} contradict each other",
            hint="give one of them",
            code="limit.invalid",
        )
    inodes = labels.get(INODES)
    return Asked(next(iter(sizes.values()), None), _inodes(inodes, f"{where} {INODES}") if inodes else None)


def read_size(text: str, name: str) -> int:
    """Bytes in ``text``, above 0; also as Kubernetes writes them (``24Mi``)."""
    try:
        size = parse_size(f"{text}b" if text.endswith(("i", "I")) else text)
    except InvalidArgument as error:
        raise _refused(name, text, "not a size") from error
    if size < 1:
        raise _refused(name, text, "a limit is above 0")
    try:
        Limit(size)
    except InvalidArgument as error:
        raise _refused(name, text, "too large") from error
    return size


def _inodes(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < 1 << 31):
        raise _refused(name, text, "not a number of inodes")
    return int(text)


def _refused(name: str, text: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name}={text:.120}: {why}",
        hint="write bytes as digits, or a number with k, m, g or t, such as 512m or 10GiB",
        code="limit.invalid",
    )


def choose(asked: Iterable[Asked], default: Limit | None, maximum: int | None) -> Limit | None:
    """The limit that comes of it: of each thing, the first that says it counts; the class's default is last.

    InvalidArgument for inodes without a size, and above the class's ``maximum``.
    """
    places = list(asked)
    size = next((each.size for each in places if each.size is not None), None)
    inodes = next((each.inodes for each in places if each.inodes is not None), None)
    if size is None and inodes is None:
        return default
    if size is None:
        if default is None:
            raise InvalidArgument(
                f"{INODES}={inodes} without a size",
                hint=f"give {SIZE}, too: inodes are limited together with bytes",
                code="limit.invalid",
            )
        size = default.bytes
    if maximum is not None and size > maximum:
        raise InvalidArgument(
            f"a limit of {format_size(size)} is above the class's maximum of {format_size(maximum)}",
            hint="ask for less, or use a class that allows more",
            code="limit.maximum",
        )
    return Limit(size, inodes)
