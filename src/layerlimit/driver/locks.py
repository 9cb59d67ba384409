"""Locks between threads and processes: one file, one byte for the root and one for each layer.

Open-file-description locks of the kernel: nothing to clean up, gone with the process. A layer's lock is
always taken before its ancestors' (a chain has no cycles), so two callers cannot wait for each other.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from layerlimit.errors import Error, from_os_error
from layerlimit.linux.files import lock_ranges

_ROOT = 0
_HARMLESS = (errno.ENOENT, errno.EEXIST, errno.EBUSY)  # answers, not failures


def _offset(id: str) -> int:
    return 1 + int.from_bytes(hashlib.sha256(id.encode()).digest()[:7])


class Held:
    """The locks that one operation has; they end together."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def add(self, ids: Iterable[str], *, exclusive: bool = True) -> None:
        """Also lock these, descendants first; waits."""
        lock_ranges(self._fd, [_offset(id) for id in ids], exclusive=exclusive)


class Locks:
    """The lock file of one root."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.on_failure: Callable[[], object] | None = None  # called when an operation met an error

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, f"open {self._path}") from error

    @contextlib.contextmanager
    def hold(self, *ids: str) -> Iterator[Held]:
        """Lock these layers for one operation; others on the same layers wait.

        An OSError that the operation let through leaves here as a typed error.
        """
        try:
            fd = self._open()
            try:
                lock_ranges(fd, [_ROOT], exclusive=False)
                held = Held(fd)
                held.add(ids)
                yield held
            finally:
                os.close(fd)
        except OSError as error:
            self._failed(error)
            raise from_os_error(error, f"work on layer {', '.join(ids)}") from error
        except Error as error:
            if isinstance(error.__cause__, OSError):
                self._failed(error.__cause__)
            raise

    def _failed(self, error: OSError) -> None:
        """Such an operation may have left something that it could not undo, either."""
        if self.on_failure is not None and error.errno not in _HARMLESS:
            self.on_failure()

    @contextlib.contextmanager
    def attempt(self, id: str) -> Iterator[Held | None]:
        """Lock a layer if nobody has it; yields None when somebody does."""
        fd = self._open()
        try:
            free = lock_ranges(fd, [_ROOT], exclusive=False, wait=False)
            free = free and lock_ranges(fd, [_offset(id)], exclusive=True, wait=False)
            yield Held(fd) if free else None
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def everything(self) -> Iterator[None]:
        """Lock the whole root: nobody else does anything meanwhile."""
        fd = self._open()
        try:
            lock_ranges(fd, [_ROOT], exclusive=True)
            yield
        finally:
            os.close(fd)


class Attempts:
    """Locks tried by a sweep; ``failed`` says that some were taken, and that the sweep has to come back."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self.failed = False

    @contextlib.contextmanager
    def attempt(self, id: str) -> Iterator[Held | None]:
        """:meth:`Locks.attempt`."""
        with self._locks.attempt(id) as held:
            self.failed |= held is None
            yield held

    def is_free(self, id: str) -> bool:
        """Whether nobody works on the layer at this moment."""
        with self.attempt(id) as held:
            return held is not None
