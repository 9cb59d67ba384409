"""How a writable layer is held to its limit: one protocol, one module per mechanism."""

from __future__ import annotations

from pathlib import Path

from layerlimit.errors import InvalidArgument
from layerlimit.limit.image import ImageLimiter
from layerlimit.limit.protocol import MIB, Health, Limit, Limiter, Place, Record, Usage
from layerlimit.limit.size import format_size, parse_size

__all__ = [
    "MIB",
    "Health",
    "ImageLimiter",
    "Limit",
    "Limiter",
    "Place",
    "Record",
    "Usage",
    "format_size",
    "limiter",
    "parse_size",
]

LIMITERS = {"image": ImageLimiter}


def limiter(name: str, root: Path) -> ImageLimiter:
    """The limiter called ``name`` over ``root``; InvalidArgument for a name that no mechanism has."""
    try:
        return LIMITERS[name](root)
    except KeyError:
        known = ", ".join(["none", *LIMITERS])
        raise InvalidArgument(f"there is no limiter {name!r}", hint=f"known are: {known}") from None
