"""/proc/<pid>/mountinfo: every mount of a mount namespace (proc_pid_mountinfo(5)).

Reading it takes milliseconds once thousands of mounts exist, and it changes meanwhile: for looking around and
for clean-up, never to find out whether one path is a mount (``statx.is_mount_point``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line. ``root`` is the directory of the file system that is mounted at ``mount_point``.

    ``propagation`` holds the optional fields, e.g. ``shared:5``; ``super_options`` are the file system's own.
    """

    mount_id: int
    parent_id: int
    device: int
    root: Path
    mount_point: Path
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def parse(text: bytes) -> list[MountEntry]:
    """The entries of a mountinfo file, in its order: a mount comes after what it is mounted on.

    Names are decoded as file names are (surrogateescape); ``ValueError`` for what is no mountinfo.
    """
    return [_entry(line) for line in text.splitlines() if line]


def read(process: str = "self") -> list[MountEntry]:
    """The mounts that ``process`` (a pid or ``self``) sees, which are those below its root directory."""
    return parse(Path("/proc", process, "mountinfo").read_bytes())


def below(directory: Path, entries: list[MountEntry]) -> Iterator[MountEntry]:
    """The mounts at and below ``directory``, the last mounted first: the order in which to unmount them."""
    for entry in reversed(entries):
        if entry.mount_point.is_relative_to(directory):
            yield entry


def _entry(line: bytes) -> MountEntry:
    fields = line.split(b" ")
    try:
        separator = fields.index(b"-", 6)
        fstype, source, super_options = fields[separator + 1 : separator + 4]
        major, _, minor = fields[2].partition(b":")
        return MountEntry(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=os.makedev(int(major), int(minor)),
            root=Path(_decoded(fields[3])),
            mount_point=Path(_decoded(fields[4])),
            options=_split(fields[5]),
            propagation=tuple(field.decode() for field in fields[6:separator]),
            fstype=_decoded(fstype),
            source=_decoded(source),
            super_options=_split(super_options),
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a line of mountinfo: {line!r}") from error


def _split(field: bytes) -> tuple[str, ...]:
    # Split first: a comma within a value is escaped as \054.
    return tuple(_decoded(option) for option in field.split(b","))


def _decoded(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda octal: bytes((int(octal[1], 8),)), field))
