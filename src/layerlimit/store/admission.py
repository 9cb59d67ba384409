"""How much the limits of a store may promise, and when its disk is too full for more.

Thin images take space as they are written to, so limits can promise more than the disk has. A new limit is
admitted while the sum of all fits the disk's size times ``overcommit``; and no writable layer is made while
less than ``floor`` bytes are free, whatever fills the disk.
"""

from __future__ import annotations

import math
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from layerlimit.errors import InvalidArgument, OutOfSpace
from layerlimit.limit import MIB, Limit, format_size

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
    """``overcommit`` is a ratio, 1.0 by default; ``floor`` the bytes that always stay free on the disk.

    ``default_limit`` is the bytes that a writable layer gets when it is created without a limit; 0: none.
    """

    overcommit: float = 1.0
    floor: int = DEFAULT_FLOOR
    default_limit: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.overcommit < math.inf or self.floor < 0 or self.default_limit < 0:
            raise InvalidArgument(
                f"overcommit {self.overcommit} with a floor of {self.floor} bytes makes no sense",
                hint="overcommit is a ratio above 0, the floor and the default limit are numbers of bytes",
                code="policy.invalid",
            )

    @property
    def limit(self) -> Limit | None:
        """The default limit, if there is one."""
        return Limit(self.default_limit) if self.default_limit else None

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
                hint="free space, or lower the floor with 'layerlimit config floor=SIZE'",
                code="host.full",
            )
        if more and capacity.promised + more > capacity.admissible:
            raise OutOfSpace(
                f"a limit of {format_size(more)} does not fit: {format_size(capacity.promised)} of "
                f"{format_size(capacity.admissible)} are promised already",
                hint="remove layers, or allow more with 'layerlimit config overcommit=RATIO'",
                code="host.overcommit",
            )


def read_policy(db: sqlite3.Connection) -> Policy:
    """What was recorded; the built-in policy when nothing was."""
    row = db.execute("SELECT overcommit, floor, default_limit FROM policy").fetchone()
    return Policy(*row) if row else Policy()


def write_policy(db: sqlite3.Connection, policy: Policy) -> None:
    """Record a policy, in a transaction of the caller's."""
    db.execute("DELETE FROM policy")
    db.execute("INSERT INTO policy VALUES (?, ?, ?)", (policy.overcommit, policy.floor, policy.default_limit))
