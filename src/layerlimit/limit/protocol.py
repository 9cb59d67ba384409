"""What a limit is, what is written down about one, and what every limiter can do.

A limiter is the mechanism that holds one writable layer to its limit. The driver owns ids, chains and
holds; a limiter owns the files and mounts that enforce. A new mechanism is a new module and a line in
the table of ``limit/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from layerlimit.errors import InvalidArgument

MIB = 1 << 20
MAX_BYTES = 15 << 40  # with its metadata still below the 16 TiB that ext4 and XFS hosts hold in one file


@dataclass(frozen=True, slots=True)
class Limit:
    """What one writable layer may use: ``bytes`` of data, and ``inodes`` (None: in proportion to bytes).

    ``ephemeral`` layers have no journal: faster on fsync-heavy work, but a crash of the machine may
    lose even synced files. ``reserve`` takes all the space from the host at creation.
    """

    bytes: int
    inodes: int | None = None
    ephemeral: bool = False
    reserve: bool = False

    def __post_init__(self) -> None:
        if type(self.bytes) is not int or not 1 <= self.bytes <= MAX_BYTES:
            raise InvalidArgument(
                f"a limit of {self.bytes!r} bytes is out of range",
                hint=f"a limit is a whole number of bytes, at most {MAX_BYTES} (15 TiB)",
                code="limit.range",
            )
        if self.inodes is not None and (type(self.inodes) is not int or not 1 <= self.inodes < 1 << 31):
            raise InvalidArgument(
                f"an inode limit of {self.inodes!r} is out of range",
                hint="it is an integer from 1 to 2147483647",
                code="limit.range",
            )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a layer uses now: ``bytes`` allocated for its data and metadata, and ``inodes``."""

    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept on disk about a limited layer, beside the limit itself.

    ``uuid`` is the identity of the image, 32 hex digits ("" for an image that the Go driver made);
    ``rooted`` images hold the layer at their root instead of in ``upper/``; ``fresh_blocks`` and
    ``fresh_inodes`` are what was free when the layer was empty, so that usage is a subtraction;
    ``growing`` is the limit that an unfinished resize was about to set.
    """

    limit: Limit
    limiter: str
    uuid: str = ""
    rooted: bool = False
    fresh_blocks: int = 0
    fresh_inodes: int = 0
    growing: Limit | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attached layer lives: ``upper`` and ``work`` on one mount; ``fresh``: newly attached."""

    upper: Path
    work: Path | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class Health:
    """``state``: ``ok``, ``degraded`` (read-only after an error) or ``detached``; ``why`` says more."""

    state: str
    why: str = ""


Announce = Callable[[Record], Callable[[], object]]


class Limiter(Protocol):
    """One mechanism over one root directory. The driver holds the layer's lock around every call."""

    name: str

    def create(
        self,
        id: str,
        limit: Limit,
        owner: tuple[int, int],
        *,
        announce: Announce = lambda _: lambda: None,
    ) -> Record:
        """Make the limited place of ``id``, durably; leaves nothing on failure.

        ``announce`` is called first with what is to be remembered, which is returned as well: it writes that
        down, so that a crash leaves nothing that nobody can explain. What it returns makes that durable, and
        is called before the place is made durable.
        """

    def attach(self, id: str, record: Record, *, read_only: bool = False, bind: bool = True) -> Place:
        """Make sure that ``diff/<id>`` is the limited place of ``id``, proven, or raise. Idempotent.

        Without ``bind`` the place is there and proven, but ``diff/<id>`` may be empty: for whoever is told of
        the place itself. Each mount of the machine is read again and again while containers start.
        """

    def detach(self, id: str) -> None:
        """Undo :meth:`attach`; Busy when a process uses the place. Idempotent."""

    def is_attached(self, id: str) -> bool:
        """Whether anything is mounted for ``id``."""

    def sync(self, id: str) -> None:
        """Make what was written to the place durable."""

    def usage(self, id: str, record: Record) -> Usage:
        """Bytes and inodes in use, in constant time, attached or not."""

    def resize(self, id: str, record: Record, limit: Limit) -> Record:
        """Grow to ``limit`` and return the new record; the caller has written it down as ``growing``.

        Idempotent; a ``record`` that says ``growing`` itself is of an attempt that did not come to its end.
        """

    def size(self, id: str) -> int:
        """Bytes of the place with all that it needs for itself: to see whether it has grown."""

    def health(self, id: str) -> Health:
        """Whether the attached place still takes writes, and why not."""

    def inspect(self, id: str, record: Record, *, deep: bool) -> list[tuple[str, str]]:
        """What is not as it should be, as codes and sentences; Corrupt for what cannot be used at all."""

    def recovered(self, id: str) -> list[str]:
        """Names of what a repair could only put into ``lost+found``; empty when not attached."""

    def files(self, id: str) -> list[Path]:
        """The files and directories that belong to ``id``, for removal; they need not exist."""
