"""How much a layer holds: apparent size as Docker counts it, disk usage as containerd does."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerlimit.archive.descent import statuses
from layerlimit.archive.form import Form
from layerlimit.errors import from_os_error

_STAT_BLOCK = 512  # the unit of st_blocks, whatever the file system's block size


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk space of a tree."""

    #: Bytes allocated, hard links once.
    bytes: int
    #: Files and directories, the root included, hard links once.
    inodes: int


def size(upper: Path, *, form: Form) -> int:
    """Bytes of the layer's own files: the sum of their apparent sizes, hard links once.

    Directories and whiteouts count nothing, a symlink the length of its target, a sparse file its full
    size. Names that vanish meanwhile are left out. Raises NotFound when ``upper`` is missing.
    """
    return sum(status.st_size for status in _once(upper, form) if not stat.S_ISDIR(status.st_mode))


def usage(upper: Path) -> Usage:
    """Disk space and inodes of everything in ``upper``, whiteouts and metadata included.

    Names that vanish meanwhile are left out. Raises NotFound when ``upper`` is missing.
    """
    blocks = inodes = 0
    for status in _once(upper, Form.FLAT):
        blocks += status.st_blocks
        inodes += 1
    return Usage(bytes=blocks * _STAT_BLOCK, inodes=inodes)


def _once(upper: Path, form: Form) -> Iterator[os.stat_result]:
    linked: set[tuple[int, int]] = set()
    try:
        for status in statuses(upper, form):
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                key = (status.st_dev, status.st_ino)
                if key in linked:
                    continue
                linked.add(key)
            yield status
    except OSError as error:
        raise from_os_error(error, f"measure {upper}") from error
