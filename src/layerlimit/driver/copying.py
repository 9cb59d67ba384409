"""Copying a layer's directory as it is, marks and all, which no tar can hold.

Names are only ever opened below directories that are open, and links are not followed: somebody in the layer
who still has files open may rename what he likes. Directories may be nested to any depth.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

from layerlimit.linux import files, xattr
from layerlimit.union.held import hold

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a file that was replaced by a FIFO since it was looked at must not block.
_SOURCE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOATIME
_TARGET: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: Final = 32  # pairs of directories held open; those further up are opened again by ".." on the way back


class _Pair:
    """A directory and its copy, both open, and the names in it that are yet to be copied."""

    __slots__ = ("name", "rest", "source", "status", "target", "target_status")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.source = self.target = -1

    def open(self, source: int, target: int) -> None:
        """Open the two of its name in the directories ``source`` and ``target``."""
        self.source = os.open(self.name, _DIRECTORY, dir_fd=source)
        self.target = os.open(self.name, _DIRECTORY, dir_fd=target)
        self.status, self.target_status = os.fstat(self.source), os.fstat(self.target)
        self.rest = sorted(map(os.fsencode, os.listdir(self.source)), reverse=True)

    def close(self) -> None:
        for fd in (self.source, self.target):
            if fd >= 0:
                os.close(fd)
        self.source = self.target = -1

    def reopen(self, below: _Pair) -> None:
        """Open both again as what the directories of ``below`` are in."""
        if self.source >= 0:
            return
        self.source = os.open(b"..", _DIRECTORY, dir_fd=below.source)
        self.target = os.open(b"..", _DIRECTORY, dir_fd=below.target)
        for fd, known in ((self.source, self.status), (self.target, self.target_status)):
            if not os.path.samestat(os.fstat(fd), known):
                raise OSError(errno.ESTALE, "a directory was moved while it was copied", self.name)


def copy_tree(source: Path, target: Path) -> None:
    """Make ``target`` a copy of the directory ``source``: content, holes, hard links, devices, sockets,
    owners, modes, times, all extended attributes. Not durable yet; raises OSError, with some of it there.
    """
    os.mkdir(target, 0o700)
    _Copy().run(source, target)


class _Copy:
    def __init__(self) -> None:
        self._chain: list[_Pair] = []
        self._links: dict[tuple[int, int], tuple[bytes, ...]] = {}  # where the first name of an inode went

    def run(self, source: Path, target: Path) -> None:
        with contextlib.ExitStack() as opened:
            opened.callback(self._close)
            self._enter(b".", *(hold(path, opened) for path in (source, target)))
            while self._chain:
                here = self._chain[-1]
                if here.rest:
                    self._entry(here, here.rest.pop())
                else:
                    _copy_attributes(here.status, here.source, here.target)
                    self._leave()

    def _close(self) -> None:
        for pair in self._chain:
            pair.close()

    def _enter(self, name: bytes, source: int, target: int) -> None:
        pair = _Pair(name)
        self._chain.append(pair)
        pair.open(source, target)
        if len(self._chain) > _KEPT + 1:  # the first stays open: links are made from there
            self._chain[-_KEPT - 1].close()

    def _leave(self) -> None:
        left = self._chain.pop()
        try:
            if self._chain:
                self._chain[-1].reopen(left)
        finally:
            left.close()

    def _entry(self, here: _Pair, name: bytes) -> None:
        status = os.stat(name, dir_fd=here.source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=here.target)
            self._enter(name, here.source, here.target)
        elif status.st_nlink > 1 and (first := self._links.get((status.st_dev, status.st_ino))):
            self._link(first, here.target, name)
        else:
            if status.st_nlink > 1:
                parts = (*(pair.name for pair in self._chain[1:]), name)
                self._links[status.st_dev, status.st_ino] = parts
            if stat.S_ISREG(status.st_mode):
                _copy_file(here, name)
            else:
                _copy_special(here, name, status)

    def _link(self, first: tuple[bytes, ...], directory: int, name: bytes) -> None:
        at = os.dup(self._chain[0].target)
        try:
            for part in first[:-1]:
                below = os.open(part, _DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            os.link(first[-1], name, src_dir_fd=at, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(at)


def _copy_file(here: _Pair, name: bytes) -> None:
    source = os.open(name, _SOURCE, dir_fd=here.source)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ESTALE, "it was replaced while it was copied", name)
        target = os.open(name, _TARGET, 0o600, dir_fd=here.target)
        try:
            files.copy_sparse(source, target, status.st_size)
            _copy_attributes(status, source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_special(here: _Pair, name: bytes, status: os.stat_result) -> None:
    """A symlink, a device (a whiteout is one), a FIFO or a socket."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=here.source), name, dir_fd=here.target)
    else:
        os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=here.target)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=here.target, follow_symlinks=False)
    source, target = xattr.entry_path(here.source, name), xattr.entry_path(here.target, name)
    for key in xattr.list_xattrs(source):
        xattr.set_xattr(target, key, xattr.get_xattr(source, key))
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here.target)
    times = status.st_atime_ns, status.st_mtime_ns
    os.utime(name, ns=times, dir_fd=here.target, follow_symlinks=False)


def _copy_attributes(status: os.stat_result, source: int, target: int) -> None:
    """Of a file or directory. The owner first: another one takes capabilities and set-uid bits away."""
    os.fchown(target, status.st_uid, status.st_gid)
    for key in xattr.list_xattrs(source):
        xattr.set_xattr(target, key, xattr.get_xattr(source, key))
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
