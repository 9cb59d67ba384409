"""Space put aside, so that a full disk can still be looked at and freed: the directory ``reserve/``.

SQLite needs some blocks to be opened and for each transaction, a removal needs a directory, a mount some
files. On a disk with nothing left these come from here: a few allocated files, given up one after the other
as operations fail for want of space, and made again once there is room. What frees space may use all of
them; what does not has to leave half.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from layerlimit.errors import OutOfSpace
from layerlimit.linux import files

PIECES = 32  # each is a file: inodes may be what there is none of
PIECE_BYTES = 128 << 10
_LEFT_FOR_FREEING = PIECES // 2
_AMPLE = 16 * PIECES * PIECE_BYTES  # with less than that free, the reserve is not made again
_LOW_BYTES = 1 << 20
_LOW_INODES = 16

P = ParamSpec("P")
R = TypeVar("R")


def is_full(directory: Path) -> bool:
    """Whether the disk of ``directory`` has next to no blocks, or next to no inodes, left."""
    space = os.statvfs(directory)
    no_inodes = space.f_files > 0 and space.f_favail < _LOW_INODES
    return no_inodes or space.f_bavail * space.f_frsize < _LOW_BYTES


class Reserve:
    """The reserve of one root, for any number of threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directory = root / "reserve"

    def restock(self) -> None:
        """Make what is missing, if the disk has ample room. Never fails: it is tried at every opening."""
        with contextlib.suppress(OSError):
            missing = {f"{number}" for number in range(PIECES)} - set(self._pieces())
            space = os.statvfs(self._root)
            if not missing or space.f_bavail * space.f_frsize < _AMPLE:
                return
            self._directory.mkdir(mode=0o700, exist_ok=True)
            for name in sorted(missing):
                self._make(self._directory / name)

    def _make(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            files.allocate(fd, PIECE_BYTES, path)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    def _pieces(self) -> list[str]:
        try:
            return sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []

    def through(self, action: Callable[[], R], *, frees: bool = False) -> R:
        """``action``, again with a piece given up each time it fails on a full disk.

        It must be an operation that can be repeated after OutOfSpace. ``frees`` says that it frees space.
        """
        while True:
            try:
                return action()
            except OutOfSpace as error:
                if error.code == "host.full" or not self._give_up(frees):  # it wants more than there is here
                    raise

    def _give_up(self, frees: bool) -> bool:
        if not self._root.is_dir() or not is_full(self._root):
            return False  # it is a limit that is full
        pieces = self._pieces()
        if len(pieces) <= (0 if frees else _LEFT_FOR_FREEING):
            return False
        with contextlib.suppress(FileNotFoundError):  # somebody else gave it up: there is space, too
            os.unlink(self._directory / pieces[-1])
        return True


class HasReserve(Protocol):
    """What :func:`spending` decorates methods of."""

    reserve: Reserve


S = TypeVar("S", bound=HasReserve)


def spending(
    *, frees: bool = False
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Let a method work on a full disk, at the cost of the reserve; see :meth:`Reserve.through`."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        def on_a_full_disk(self: S, /, *arguments: P.args, **options: P.kwargs) -> R:
            return self.reserve.through(lambda: method(self, *arguments, **options), frees=frees)

        functools.update_wrapper(on_a_full_disk, method)
        return on_a_full_disk

    return decorate
