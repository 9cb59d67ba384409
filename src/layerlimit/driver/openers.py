"""Who has a root open, and whether it has to be swept: the file ``open``.

    header   "<boot id> <device> <inode>": swept in this boot, and this file is no copy
    1 byte   per opener: 1 while it has the root open, with a lock of the kernel on the byte; 2 once an
             operation of its met an error

A byte without its lock is an opener that was killed, and may have left something half-done; so may one that
could not undo what failed. An opening costs the same whatever is in the root: it reads one page, and only
after a boot, a death or an error is there anything to sweep. Nothing here is synced: after a crash of the
machine there is another boot id.
"""

from __future__ import annotations

import contextlib
import os
import random
import weakref
from functools import partial
from itertools import chain
from pathlib import Path

from layerlimit.driver.holds import boot_id
from layerlimit.driver.locks import Locks
from layerlimit.linux.files import lock_ranges

_HEADER = 128
_SIZE = 4096
_OPEN, _FAILED = 1, 2


class Openers:
    """One opener's view of the file; it leaves when :meth:`leave` is called or the object is gone."""

    def __init__(self, path: Path, locks: Locks) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        status = os.fstat(self._fd)
        if status.st_size < _SIZE:  # all of it now: once the disk is full, it can still be opened
            os.pwrite(self._fd, bytes(_SIZE - status.st_size), status.st_size)
        self._wanted = f"{boot_id()} {status.st_dev} {status.st_ino}".encode().ljust(_HEADER)
        page = os.pread(self._fd, _SIZE, 0)
        self._dead = [at for at in range(_HEADER, _SIZE) if page[at] and self._lock(at)]
        failed = [at for at in range(_HEADER, _SIZE) if page[at] == _FAILED and at not in self._dead]
        self.due = page[:_HEADER] != self._wanted or bool(self._dead or failed)
        own = self._own = self._take(page)
        for at in failed:  # before we sweep: it may fail again meanwhile
            os.pwrite(self._fd, bytes([_OPEN]), at)
        if own:
            locks.on_failure = partial(_fail, self._fd, own)
        self._leave = weakref.finalize(self, _leave, self._fd, own, locks)

    def _lock(self, at: int) -> bool:
        return lock_ranges(self._fd, [at], exclusive=True, wait=False)

    def _take(self, page: bytes) -> int:
        """Take a byte that is nobody's. Without one, the next opener has to sweep whatever becomes of us."""
        start = random.randrange(_HEADER, _SIZE)  # two that open at once do not try the same ones
        for at in chain(range(start, _SIZE), range(_HEADER, start)):
            if not page[at] and self._lock(at):
                os.pwrite(self._fd, bytes([_OPEN]), at)
                return at
        os.pwrite(self._fd, bytes(_HEADER), 0)
        return 0

    def swept(self) -> None:
        """The root was swept, and nothing had to be skipped: forget the dead."""
        if not self._leave.alive:
            return
        os.pwrite(self._fd, self._wanted, 0)
        for at in self._dead:
            os.pwrite(self._fd, b"\0", at)
        self._dead.clear()

    def fail(self) -> None:
        """Have the next opener sweep: what this one had to do was not done to the end."""
        if self._leave.alive:
            _fail(self._fd, self._own)

    def leave(self) -> None:
        """Give the byte back. More calls do nothing."""
        self._leave()


def _fail(fd: int, own: int) -> None:
    with contextlib.suppress(OSError):  # the error that led here is the one to report
        os.pwrite(fd, bytes([_FAILED]), own)


def _leave(fd: int, own: int, locks: Locks) -> None:
    locks.on_failure = None
    with contextlib.suppress(OSError):
        if own and os.pread(fd, 1, own) != bytes([_FAILED]):
            os.pwrite(fd, b"\0", own)
    os.close(fd)
