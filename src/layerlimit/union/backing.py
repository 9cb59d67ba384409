"""Which file system a path lies on, or will lie on once it is made."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from layerlimit.errors import NotSupported, from_os_error
from layerlimit.linux.statfs import Statfs, statfs


def file_system(path: Path, *, look: Callable[[Path], Statfs] = statfs) -> Statfs:
    """What holds ``path``, or its nearest parent that exists."""
    for candidate in (path, *path.parents):
        try:
            return look(candidate)
        except FileNotFoundError as error:
            missing: OSError = error
        except OSError as error:
            missing = error
            break
    raise from_os_error(missing, f"look at the file system of {path}") from missing


def refuse_backing(
    path: Path, unusable: Collection[int], union: str, *, look: Callable[[Path], Statfs] = statfs
) -> None:
    """Raise NotSupported if ``path`` lies on one of the ``unusable`` file systems."""
    found = file_system(path, look=look)
    if found.type in unusable:
        raise NotSupported(
            f"{path} lies on {found.name}, which {union} cannot use for a writable layer",
            hint="choose a root on ext4, XFS or tmpfs, or limit the layer: its image brings its own ext4",
            code="union.backing",
        )
