"""What a layer changes: added, modified and deleted paths, as ``docker diff`` lists them.

A list is what tells the tree with the layer from the tree without it:

* A whiteout is a Delete when the layers below show the name, and nothing otherwise. What an opaque
  directory hides is a Delete of each hidden name that the layer does not bring again (those are Modify),
  at any depth; a deleted subtree is one Delete at its top.
* A file that a layer holds over another is a Modify, even with equal content: the layer stores it.
* A directory over a directory is a Modify when its mode, owner or group differ, or when something was
  added to it or deleted from it (Docker's rule since 1.7); its times alone are no change. A directory in
  place of something else, or the reverse, is one Modify, and what was below is implied.
* A name deleted by one lower layer and brought again above it is an Add.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerlimit.archive.below import Found, Level, Lowers
from layerlimit.archive.descent import Descent, Directory
from layerlimit.archive.form import Form
from layerlimit.archive.writer import display
from layerlimit.errors import from_os_error
from layerlimit.linux import xattr

_SECOND = 1_000_000_000
_CAPABILITY = b"security.capability"


class Kind(enum.IntEnum):
    """What happened to a path; the numbers are Docker's, the letters ``docker diff``'s."""

    MODIFY = 0
    ADD = 1
    DELETE = 2

    def __str__(self) -> str:
        return "CAD"[self]


@dataclass(frozen=True, slots=True)
class Change:
    """One changed path, absolute within the layer; bytes that are not text are surrogate escapes."""

    path: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def changes(upper: Path, lowers: Sequence[Path], *, form: Form) -> list[Change]:
    """The changes that the directory ``upper`` makes to ``lowers`` (nearest first), sorted by path.

    All are directories of changes in ``form``; without lowers everything is an Add. The cost goes with
    what ``upper`` holds and hides and with the number of lowers, not with what the lowers hold. Nothing
    is mounted and no symlink is followed. ``lost+found`` at the top is no part of a layer. A tree that
    changes meanwhile gives the names of some moment between start and end, or an error. Raises
    NotFound when a directory is missing, and what else :func:`from_os_error` makes of the kernel's error.
    """
    return _list(upper, lowers, form, whole=False)


def compare(new: Path, old: Path | None) -> list[Change]:
    """What differs between two whole trees, as changes from ``old`` to ``new``, sorted by path.

    Files differ when type, mode, owner, group, device number, size, mtime or ``security.capability`` do;
    content is not read. Two mtimes are equal when they are, or when their seconds are and at least one has no
    fraction (a tar drops it). A file or directory that is the same inode in both trees is equal
    without a further look. ``old`` None stands for an empty tree. The cost goes with the trees.
    """
    return _list(new, [old] if old else [], Form.FLAT, whole=True)


def _list(upper: Path, lowers: Sequence[Path], form: Form, *, whole: bool) -> list[Change]:
    at = b""
    try:
        with Lowers(lowers, form) as below, Descent(upper, form) as descent:
            comparison = _Comparison(below, whole=whole)
            comparison.top(descent.here)
            while descent:
                here = descent.here
                for name in here.rest:
                    at = here.prefix + name
                    if name in here.listing.directories and at not in comparison.pruned:
                        comparison.directory(descent.enter(name))
                        break
                else:
                    comparison.leave()
                    descent.leave()
    except OSError as error:
        raise from_os_error(error, f"list the changes of {upper}/{display(at)}") from error
    return comparison.sorted()


class _Comparison:
    """The changes found so far, and what the layers below have where the walk will come by."""

    def __init__(self, below: Lowers, *, whole: bool) -> None:
        #: Directories that are the same inode in both trees.
        self.pruned: set[bytes] = set()
        self._below = below
        self._whole = whole
        self._changes: dict[bytes, Kind] = {}
        self._expected: dict[bytes, Found | None] = {}
        #: For each directory on the way: what the layers below have in it is gone unless it is here.
        self._hidden = [whole]

    def top(self, here: Directory) -> None:
        """Compare the entries of the root, which is no change itself."""
        self._entries(here, self._below.all)

    def directory(self, here: Directory) -> None:
        """Compare a directory and its entries."""
        path = here.prefix[:-1]
        found = self._expected.pop(path)
        if found is None:
            self._record(path, Kind.ADD)
            self._entries(here, ())
            return
        # A directory that is equal was copied up only because of what is in it.
        if not found.layers or _inodes_differ(here.status, found.status):
            self._changes[path] = Kind.MODIFY
        self._entries(here, found.layers)

    def leave(self) -> None:
        """The walk goes back to the parent."""
        self._hidden.pop()

    def sorted(self) -> list[Change]:
        """Everything found, by path."""
        return [Change("/" + os.fsdecode(path), self._changes[path]) for path in sorted(self._changes)]

    def _entries(self, here: Directory, layers: Sequence[int]) -> None:
        hidden = here.listing.opaque or self._hidden[-1]
        self._hidden.append(hidden)
        with self._below.level(here.prefix, layers) as level:
            self._deletions(here, level, hidden=hidden)
            self._names(here, level)

    def _deletions(self, here: Directory, level: Level, *, hidden: bool) -> None:
        listing = here.listing
        if hidden:
            for name in level.names().difference(listing.names):
                self._record(here.prefix + name, Kind.DELETE)
        else:
            for name in listing.whiteouts:
                if level.find(name):
                    self._record(here.prefix + name, Kind.DELETE)

    def _names(self, here: Directory, level: Level) -> None:
        for name in here.listing.names:
            path = here.prefix + name
            found = level.find(name)
            if name in here.listing.directories:
                if found and self._whole and self._is_same(here.fd, name, found):
                    self.pruned.add(path)
                else:
                    self._expected[path] = found
            elif found is None:
                self._record(path, Kind.ADD)
            elif not self._whole or self._files_differ(here.fd, name, found):
                self._changes[path] = Kind.MODIFY

    def _record(self, path: bytes, kind: Kind) -> None:
        self._changes[path] = kind
        parent = path.rpartition(b"/")[0]
        if parent:
            self._changes.setdefault(parent, Kind.MODIFY)

    def _is_same(self, fd: int, name: bytes, found: Found) -> bool:
        return os.path.samestat(os.stat(name, dir_fd=fd, follow_symlinks=False), found.status)

    def _files_differ(self, fd: int, name: bytes, found: Found) -> bool:
        new, old = os.stat(name, dir_fd=fd, follow_symlinks=False), found.status
        if os.path.samestat(new, old):
            return False
        if _inodes_differ(new, old) or new.st_rdev != old.st_rdev:
            return True
        if new.st_size != old.st_size or not _same_time(new.st_mtime_ns, old.st_mtime_ns):
            return True
        if not stat.S_ISREG(new.st_mode):
            return False
        path = xattr.entry_path(fd, name)
        return xattr.find_xattr(path, _CAPABILITY) != xattr.find_xattr(found.path, _CAPABILITY)


def _inodes_differ(new: os.stat_result, old: os.stat_result) -> bool:
    return (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid)


def _same_time(new: int, old: int) -> bool:
    if new == old:
        return True
    return new // _SECOND == old // _SECOND and (new % _SECOND == 0 or old % _SECOND == 0)
