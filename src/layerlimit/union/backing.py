"""Which file system a path lies on, or will lie on once it is made."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from layerlimit.errors import NotSupported, from_os_error
from layerlimit.linux.statfs import NAMES, statfs


def file_system(path: Path) -> int:
    """The magic number of the file system that holds ``path`` or its nearest parent that exists."""
    while True:
        try:
            return statfs(path).type
        except FileNotFoundError as error:
            if path == path.parent:
                raise from_os_error(error, f"look at the file system of {path}") from error
            path = path.parent
        except OSError as error:
            raise from_os_error(error, f"look at the file system of {path}") from error


def refuse_backing(
    path: Path, unusable: Collection[int], union: str, *, look: Callable[[Path], int] = file_system
) -> None:
    """Raise NotSupported if ``path`` lies on one of the ``unusable`` file systems."""
    magic = look(path)
    if magic in unusable:
        raise NotSupported(
            f"{path} lies on {NAMES.get(magic, hex(magic))}, which {union} cannot use for a writable layer",
            hint="choose a root on ext4, XFS or tmpfs, or limit the layer: its image brings its own ext4",
            code="union.backing",
        )
