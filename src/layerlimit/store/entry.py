"""What the store says of a layer."""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from layerlimit.errors import Error, InvalidArgument

NAME_BYTES = 4096
LABEL_BYTES = 4096  # key and value together, as containerd allows


class Kind(enum.IntEnum):
    """The stage of an entry's life; the numbers are containerd's."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Info:
    """An entry as it was at one moment.

    ``id`` is the driver's; ``parent`` is a name in the same namespace, ``""`` for a base; times are
    nanoseconds since 1970, UTC. ``used_bytes`` and ``used_inodes`` were recorded at commit (None: not
    known). ``durable`` is False for a layer that was committed without a sync. ``diff_id`` is that of the
    one tar a layer was imported from.
    """

    namespace: str
    name: str
    id: str
    kind: Kind
    parent: str
    created: int
    updated: int
    used_bytes: int | None = None
    used_inodes: int | None = None
    durable: bool = True
    diff_id: str | None = None
    promised: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def writable(self) -> bool:
        """Whether it can be written to; views and committed layers are mounted read-only."""
        return self.kind is Kind.ACTIVE

    @property
    def created_at(self) -> datetime:
        """:attr:`created` to the microsecond, with its time zone."""
        return datetime.fromtimestamp(self.created / 1e9, UTC)


@dataclass(frozen=True, slots=True)
class Gauge:
    """What is measured of a layer; None where it does not apply or cannot be read at this moment.

    ``mounted``: the kernel shows a mount of it here, if only of its image for an engine. ``limit_inodes`` is
    what fits, asked for or not.
    """

    namespace: str
    name: str
    id: str
    kind: Kind
    mounted: bool = False
    degraded: bool = False
    used_bytes: int | None = None
    limit_bytes: int | None = None
    used_inodes: int | None = None
    limit_inodes: int | None = None


def check_name(name: str) -> str:
    """``name`` if it may be an entry's: any text of 1 to 4096 bytes without NUL."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= NAME_BYTES or "\0" in name:
        raise InvalidArgument(
            f"{name!r:.120} cannot be a name", hint="use 1 to 4096 bytes of UTF-8 text", code="name.invalid"
        )
    return name


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """``labels`` if each has a key and fits; those with an empty value are left out, as containerd does."""
    for key, value in labels.items():
        try:
            fits = len(key.encode()) + len(value.encode()) <= LABEL_BYTES
        except UnicodeEncodeError:
            fits = False
        if not key or not fits:
            raise InvalidArgument(
                f"the label {key!r:.120} is empty, too long or no text",
                hint=f"key and value together hold at most {LABEL_BYTES} bytes of UTF-8 text",
                code="label.invalid",
            )
    return {key: value for key, value in labels.items() if value}


@contextlib.contextmanager
def named(info: Info) -> Iterator[None]:
    """What the driver says of the layer's id in the block is said of its name."""
    try:
        yield
    except Error as error:
        speak_of(error, info.id, info.name)
        raise


def speak_of(error: Error, id: str, name: str) -> None:
    """Let the error name a layer as its user does."""
    error.message = re.sub(rf"\blayer {re.escape(id)}(?![\w.@-])", lambda _: f"layer {name!r}", error.message)
    error.args = (error.message,)
