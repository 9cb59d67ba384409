"""How much the limits of a store may promise, and when its disk is too full for more.

Thin images take space as they are written to, so limits can promise more than the disk has. A new limit is
admitted while the sum of all fits the disk's size times ``overcommit``; and no writable layer is made while
less than ``floor`` bytes are free, whatever fills the disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from layerlimit.errors import InvalidArgument, OutOfSpace
from layerlimit.limit import MIB, format_size

DEFAULT_FLOOR = 256 * MIB


@dataclass(frozen=True, slots=True)
class Capacity:
    """The disk below a store, in bytes: its ``size``, what is ``free``, what limits have ``promised``."""

    size: int
    free: int
    promised: int
    overcommit: float
    floor: int

    @property
    def admissible(self) -> int:
        """What may be promised altogether."""
        return int(self.size * self.overcommit)

    @property
    def full(self) -> bool:
        """Whether the free space is below the floor."""
        return self.free < self.floor


@dataclass(frozen=True, slots=True)
class Policy:
    """``overcommit`` is a ratio, 1.0 by default; ``floor`` the bytes that always stay free on the disk."""

    overcommit: float = 1.0
    floor: int = DEFAULT_FLOOR

    def __post_init__(self) -> None:
        if not self.overcommit > 0 or self.floor < 0:
            raise InvalidArgument(
                f"overcommit {self.overcommit} with a floor of {self.floor} bytes makes no sense",
                hint="overcommit is a ratio above 0, the floor a number of bytes",
                code="policy.invalid",
            )

    def capacity(self, root: Path, promised: int) -> Capacity:
        """The disk of ``root`` as it is now."""
        space = os.statvfs(root)
        return Capacity(
            size=space.f_blocks * space.f_frsize,
            free=space.f_bavail * space.f_frsize,
            promised=promised,
            overcommit=self.overcommit,
            floor=self.floor,
        )

    def admit(self, capacity: Capacity, more: int, holders: str) -> None:
        """Raise OutOfSpace unless ``more`` bytes can be promised; ``holders`` names who holds the most."""
        if capacity.full:
            raise OutOfSpace(
                f"the disk has {format_size(capacity.free)} free, less than the floor of "
                f"{format_size(capacity.floor)}{holders}",
                hint="free space, or lower the floor",
                code="host.full",
            )
        if more and capacity.promised + more > capacity.admissible:
            raise OutOfSpace(
                f"a limit of {format_size(more)} does not fit: {format_size(capacity.promised)} of "
                f"{format_size(capacity.admissible)} are promised already",
                hint="remove layers, or raise the overcommit ratio",
                code="host.overcommit",
            )
