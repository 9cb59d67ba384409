"""Walking a layer's directory in a fixed order, whatever its depth, with a handful of open directories."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from layerlimit.archive.form import Form
from layerlimit.archive.marks import Listing, read_directory
from layerlimit.linux import xattr

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KEPT = 32  # directories held open; those further up are opened again by ".." on the way back


class Directory:
    """One directory on the way from the root to where the walk is."""

    __slots__ = ("attributes", "fd", "listing", "prefix", "rest", "status")

    def __init__(self, fd: int, prefix: bytes, form: Form) -> None:
        self.fd = fd
        #: The path below the root, ending in a slash; empty for the root.
        self.prefix = prefix
        self.status = os.fstat(fd)
        self.attributes: Sequence[bytes] = xattr.list_xattrs(fd)
        self.listing: Listing = read_directory(fd, form, self.attributes, top=not prefix)
        #: The names not yet visited.
        self.rest: Iterator[bytes] = iter(self.listing.names)


class Descent:
    """The directories from the root of a layer to the current one; a context manager.

    ``for name in descent.here.rest`` visits the names; :meth:`enter` makes a sub-directory current and
    :meth:`leave` goes back. Nothing is ever reached by a path: symlinks are not followed, and a directory
    that was moved while the walk was below it is an error. Raises OSError.
    """

    def __init__(self, root: Path, form: Form) -> None:
        self._form = form
        self._chain: list[Directory] = []
        self._root = root

    def __enter__(self) -> Self:
        self._push(os.open(self._root, _OPEN), b"")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for directory in self._chain:
            if directory.fd >= 0:
                os.close(directory.fd)
        self._chain.clear()

    def __bool__(self) -> bool:
        return bool(self._chain)

    @property
    def here(self) -> Directory:
        """The current directory."""
        return self._chain[-1]

    @property
    def at_top(self) -> bool:
        """Whether the current directory is the root."""
        return len(self._chain) == 1

    def enter(self, name: bytes) -> Directory:
        """Make the sub-directory ``name`` of the current directory current."""
        here = self.here
        fd = os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=here.fd)
        entered = self._push(fd, b"%b%b/" % (here.prefix, name))
        if len(self._chain) > _KEPT:
            far = self._chain[-_KEPT - 1]
            os.close(far.fd)
            far.fd = -1
        return entered

    def leave(self) -> None:
        """Make the parent current; at the root, end the walk."""
        left = self._chain.pop()
        try:
            if self._chain and self.here.fd < 0:
                self._reopen(left.fd)
        finally:
            os.close(left.fd)

    def _push(self, fd: int, prefix: bytes) -> Directory:
        try:
            directory = Directory(fd, prefix, self._form)
        except BaseException:
            os.close(fd)
            raise
        self._chain.append(directory)
        return directory

    def _reopen(self, child: int) -> None:
        here = self.here
        here.fd = os.open("..", _OPEN, dir_fd=child)
        if not os.path.samestat(os.fstat(here.fd), here.status):
            raise OSError(errno.ESTALE, "a directory was moved while it was read", here.prefix)


def statuses(root: Path, form: Form) -> Iterator[os.stat_result]:
    """What lstat says of ``root`` and of everything in it; names that vanish meanwhile are left out."""
    with Descent(root, form) as descent:
        yield descent.here.status
        while descent:
            here = descent.here
            for name in here.rest:
                try:
                    if name in here.listing.directories:
                        yield descent.enter(name).status
                        break
                    yield os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
            else:
                descent.leave()
