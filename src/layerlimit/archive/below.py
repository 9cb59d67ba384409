"""What the layers below show at a name, without mounting them and without following a link.

Lower layers are directories of changes in the same form as the upper one, nearest first; their own
whiteouts and opaque marks count. The cost of a question goes with the number of layers, not with what
they hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from layerlimit.archive.form import OPAQUE_MARKER, OPAQUE_VALUE, WHITEOUT_PREFIX, Form
from layerlimit.archive.marks import (
    LOST_AND_FOUND,
    has_whiteout_attribute,
    is_whiteout_device,
    overlay_opaque,
    read_directory,
)
from layerlimit.linux import xattr
from layerlimit.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, slots=True)
class Found:
    """What is visible at a name."""

    status: os.stat_result
    #: A path to it, valid while its level is open.
    path: bytes
    #: The layers whose directories of this name may merge, nearest first; empty unless it is a directory.
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Open:
    layer: int
    fd: int
    opaque: bytes


class Level:
    """One directory as the lower layers show it, held open."""

    def __init__(self, form: Form, directories: Sequence[_Open], *, top: bool) -> None:
        self._form = form
        self._directories = directories
        self._top = top

    def find(self, name: bytes) -> Found | None:
        """What is visible at ``name``, if anything."""
        first: os.stat_result | None = None
        path = b""
        merging: list[int] = []
        if self._top and name == LOST_AND_FOUND:
            return None
        for directory in self._directories:
            try:
                status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            except FileNotFoundError:
                if self._is_deleted_by_name(directory, name):
                    break
                continue
            if self._is_whiteout(directory, name, status):
                break
            if first is None:
                first, path = status, xattr.entry_path(directory.fd, name)
            if not stat.S_ISDIR(status.st_mode):
                break
            merging.append(directory.layer)
        return Found(first, path, tuple(merging)) if first else None

    def names(self) -> set[bytes]:
        """All visible names; costs what the directories hold."""
        visible: set[bytes] = set()
        deleted: set[bytes] = set()
        for directory in self._directories:
            attributes = xattr.list_xattrs(directory.fd)
            listing = read_directory(directory.fd, self._form, attributes, top=self._top)
            visible.update(name for name in listing.names if name not in deleted)
            deleted.update(listing.whiteouts)
        return visible

    def _is_deleted_by_name(self, directory: _Open, name: bytes) -> bool:
        return self._form is Form.AUFS and _exists(directory.fd, WHITEOUT_PREFIX + name)

    def _is_whiteout(self, directory: _Open, name: bytes, status: os.stat_result) -> bool:
        if self._form is not Form.OVERLAY:
            return False
        if stat.S_ISCHR(status.st_mode):
            return is_whiteout_device(directory.fd, name)
        if directory.opaque == b"x" and stat.S_ISREG(status.st_mode):
            return has_whiteout_attribute(directory.fd, name)
        return False


class Lowers:
    """The layers below, nearest first, held open; a context manager. Raises OSError."""

    def __init__(self, paths: Sequence[Path], form: Form) -> None:
        self._paths = paths
        self._form = form
        self._roots: list[int] = []
        self._resources = ExitStack()

    def __enter__(self) -> Lowers:
        with ExitStack() as opened:
            for path in self._paths:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                self._roots.append(fd)
            self._resources = opened.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()
        self._roots.clear()

    @property
    def all(self) -> tuple[int, ...]:
        """Every layer, as :meth:`level` takes them for the root directory."""
        return tuple(range(len(self._roots)))

    @contextlib.contextmanager
    def level(self, path: bytes, layers: Sequence[int]) -> Iterator[Level]:
        """The directory ``path`` (relative, "" for the root) of ``layers``, down to an opaque one."""
        with ExitStack() as opened:
            directories: list[_Open] = []
            for layer in layers:
                try:
                    flags = os.O_RDONLY | os.O_DIRECTORY
                    fd = openat2(self._roots[layer], path.rstrip(b"/") or b".", flags, resolve=_INSIDE)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR):
                        continue
                    raise
                opened.callback(os.close, fd)
                directories.append(_Open(layer, fd, self._opaque(fd)))
                if directories[-1].opaque == OPAQUE_VALUE:
                    break
            yield Level(self._form, directories, top=not path)

    def has_directory(self, path: bytes) -> bool:
        """Whether a directory is visible at ``path`` (relative)."""
        layers = self.all
        above = b""
        for name in path.strip(b"/").split(b"/"):
            with self.level(above, layers) as level:
                found = level.find(name)
            if found is None or not found.layers:
                return False
            layers = found.layers
            above += name + b"/"
        return True

    def _opaque(self, fd: int) -> bytes:
        if self._form is Form.OVERLAY:
            return overlay_opaque(fd, xattr.list_xattrs(fd))
        if self._form is Form.AUFS and _exists(fd, OPAQUE_MARKER):
            return OPAQUE_VALUE
        return b""


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return False
        raise
    return True
