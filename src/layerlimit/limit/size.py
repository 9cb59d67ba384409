"""Sizes as users write them: binary, case-insensitive, as ``docker run --storage-opt size=`` takes them.

The grammar is that of Docker's go-units ``RAMInBytes``: a number with an optional fraction, an optional
space, and a suffix ``b`` or ``k m g t p`` with an optional ``b`` or ``ib``. ``10g``, ``10GB`` and
``10GiB`` are the same; plain digits are bytes.
"""

from __future__ import annotations

import re
from decimal import Decimal

from layerlimit.errors import InvalidArgument

_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str) -> int:
    """Bytes in ``text``; InvalidArgument (code ``size.invalid``) when it is not a size. Never negative."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidArgument(
            f"{text!r} is not a size",
            hint="write bytes as digits, or a number with k, m, g or t, such as 512m or 10GiB",
            code="size.invalid",
        )
    suffix = (match[2] or "").lower()
    return int(Decimal(match[1]) * 1024 ** _POWERS.get(suffix, 0))


def format_size(size: int) -> str:
    """``size`` bytes for people: ``256 MiB``, ``1.5 GiB``, ``812 B``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    digits = f"{value:.1f}".removesuffix(".0")
    return f"{digits} {unit}"
