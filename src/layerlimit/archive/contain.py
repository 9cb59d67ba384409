"""The directory a layer is extracted into: every name resolved by the kernel, nothing outside reachable.

A parent directory is opened with ``openat2`` and RESOLVE_IN_ROOT, where the root of the layer is what
``/`` means, so that absolute links and ``..`` inside links stay inside (links through ``/proc`` and
mounts below the root are refused). The descriptor is kept; what happens in the directory are ``*at`` calls
on it with a single component that is never followed. There is no check that something could change before
it is used, and no process changes its root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from layerlimit.archive.form import META_PREFIX, is_overlay_attribute
from layerlimit.archive.metadata import strip_acls
from layerlimit.archive.remove import remove_tree
from layerlimit.archive.tarformat import printable
from layerlimit.errors import InvalidArgument
from layerlimit.linux import xattr
from layerlimit.linux.libc import os_error
from layerlimit.linux.openat2 import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_WITHIN = _BENEATH | RESOLVE_NO_XDEV
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_CHILD = _OPEN_DIRECTORY | os.O_NOFOLLOW
_PROBE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_KEPT = 256  # directories kept open; far below the usual limit of 1024 descriptors
_LINKS = 40  # links in one resolution, as in the kernel (MAXSYMLINKS)


class Directory:
    """An open directory below the root, and what is known of it."""

    __slots__ = ("acl", "exact", "fd", "fresh", "marked", "noted", "plain", "top", "tracked")

    def __init__(
        self,
        fd: int,
        *,
        acl: bool,
        setgid: bool,
        fresh: bool,
        marked: bool,
        tracked: bool,
        top: bool = False,
    ) -> None:
        self.fd = fd
        #: Has a default ACL, which what is made here inherits.
        self.acl = acl
        #: Entries made here get our own ids and the mode that is asked for.
        self.exact = not acl and not setgid
        #: Everything in it was written by this layer.
        self.fresh = fresh
        #: May hold AUFS whiteouts.
        self.marked = marked
        #: An account of what this layer writes here is kept.
        self.tracked = tracked and not fresh
        #: The account has the directories above as well.
        self.noted = False
        #: The root itself.
        self.top = top
        #: A file that is made here needs no special care.
        self.plain = self.exact and not self.marked and not self.tracked

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode number."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def changed(self, *, mode: int, acl: bool) -> None:
        """Take note of the directory's new mode and default ACL."""
        self.acl = acl
        self.exact = not acl and not mode & stat.S_ISGID
        self.plain = self.exact and not self.marked and not self.tracked

    def mark(self) -> None:
        """Take note that the directory holds an AUFS whiteout."""
        self.marked = True
        self.plain = False


class Deletions(Protocol):
    """How a form records what a layer deletes; :mod:`deletions` has one class for each form."""

    #: Whether deletions of names that are not here leave a mark, for the layers below.
    recorded: bool
    #: Whether the marks are names of their own, beside the names they are about.
    beside: bool
    #: Whether the mark of a deletion has the name itself: it cannot be made while the name is there.
    in_place: bool

    def is_whiteout(self, status: os.stat_result) -> bool:
        """Whether an entry with this status is the mark of a deletion."""

    def delete(self, tree: Tree, directory: Directory, name: bytes) -> None:
        """Record that ``name``, which is not in ``directory`` any more, is deleted from lower layers."""

    def lift(self, directory: Directory, name: bytes) -> bool:
        """Take back a mark beside ``name``; whether there was one."""

    def hide(self, tree: Tree, directory: Directory) -> None:
        """Record that ``directory`` hides what lower layers have in it."""

    def finish(self, tree: Tree) -> None:
        """Record what could only be known now that all entries are there."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a directory of a lower layer hands down to one that has to be made above it."""

    status: os.stat_result
    xattrs: list[tuple[bytes, bytes]]


class Tree:
    """The root of a layer, open; a context manager.

    Descriptors of directories are kept by their path in the archive. A :class:`Directory` is valid until the
    next :meth:`begin`. Not for several threads; others may change the tree at any time, and nothing outside
    of it is touched then either.
    """

    def __init__(
        self,
        root: Path,
        deletions: Deletions,
        *,
        lowers: Sequence[Path] = (),
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        self.deletions = deletions
        self.kept: dict[bytes, Directory] = {}
        #: Directories made without an entry of their own: (path, atime, mtime) to set at the end.
        self.inherited_times: list[tuple[bytes, int, int]] = []
        #: Something was removed that a path may have led through.
        self.disturbed = False
        self._root = root
        self.lowers = lowers
        self._owner = owner
        self._retired: list[Directory] = []
        self._written: dict[tuple[int, int], set[bytes]] = {}
        self._made: set[tuple[int, int]] = set()
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            fd = os.open(self._root, _OPEN_DIRECTORY)
            opening.callback(os.close, fd)
            self.fd = fd
            self._lower_fds = []
            for lower in self.lowers:
                lower_fd = os.open(lower, _PROBE)
                opening.callback(os.close, lower_fd)
                self._lower_fds.append(lower_fd)
            # A root without content has nothing that this layer did not write: nothing to keep account of.
            self.tracked = any(not name.startswith(META_PREFIX) for name in _names(fd))
            top = self._describe(os.dup(fd), fresh=not self.tracked, top=True)
            self.kept[b""] = top
            self.top = top
            opening.callback(self._close_all)
            self._exit = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def begin(self) -> None:
        """Close what was given up; call before the next entry, when no :class:`Directory` is in use."""
        if len(self.kept) >= _KEPT:
            self.forget()
        for directory in self._retired:
            os.close(directory.fd)
        self._retired.clear()

    @property
    def room(self) -> int:
        """How many more directories can be kept before the next :meth:`begin`."""
        return max(0, _KEPT - len(self.kept))

    def forget(self) -> None:
        """Resolve every path anew from now on."""
        for path, directory in self.kept.items():
            if path:
                self._retired.append(directory)
        self.kept = {b"": self.kept[b""]}

    def directory(self, path: bytes) -> Directory | None:
        """The directory at ``path`` (cleaned), links followed inside the root; None when it is missing.

        Raises OSError: ENOTDIR where a part of the path is something else, ELOOP, EXDEV, ….
        """
        found = self.kept.get(path)
        if found is not None:
            return found
        try:
            fd = openat2(self.fd, path, _OPEN_DIRECTORY, resolve=_IN_ROOT)
        except FileNotFoundError:
            return None
        return self._keep(path, fd, fresh=False)

    def ensure(self, path: bytes) -> Directory:
        """The same, missing directories made: as in the first lower layer that has them, else 0755."""
        try:
            found = self.directory(path)
        except NotADirectoryError:
            found = None  # unless a whiteout is in the way, making it fails in the same way
        return found or self._keep(path, self._make(path), fresh=False)

    def made(self, path: bytes, directory: Directory, name: bytes) -> Directory:
        """Keep the directory ``name`` that was just made in ``directory``; ``path`` leads to it."""
        fd = os.open(name, _OPEN_CHILD, dir_fd=directory.fd)
        made = self.adopt(path, fd, not directory.exact)
        if directory.acl:
            made.changed(mode=0, acl=True)
        return made

    def adopt(self, path: bytes, fd: int, setgid: bool) -> Directory:
        """Keep the open directory ``fd`` that was just made, without ACLs; ``path`` leads to it.

        It is ours to close unless this raises.
        """
        made = Directory(fd, acl=False, setgid=setgid, fresh=True, marked=False, tracked=self.tracked)
        if self.tracked:
            self._made.add(made.identity)
        self._remember(path, made)
        return made

    def opened(self, path: bytes, directory: Directory, name: bytes) -> Directory:
        """Keep the directory ``name`` that was found in ``directory``; ``path`` leads to it."""
        if path in self.kept:
            return self.kept[path]
        fd = os.open(name, _OPEN_CHILD, dir_fd=directory.fd)
        return self._keep(path, fd, fresh=False)

    def wrote(self, directory: Directory, name: bytes) -> None:
        """Remember that ``name`` in ``directory`` belongs to this layer."""
        if directory.tracked:
            self._written.setdefault(directory.identity, set()).add(name)
            if not directory.noted:
                self._note(directory)

    def is_ours(self, directory: Directory, name: bytes) -> bool:
        """Whether ``name`` in ``directory`` was written by this layer, and not there before."""
        return not directory.tracked or name in self._written.get(directory.identity, ())

    def remove(self, directory: Directory, name: bytes) -> os.stat_result | None:
        """Remove ``name``, a directory with all that is in it; its former status, None if it was missing."""
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            remove_tree(directory.fd, name)
        else:
            os.unlink(name, dir_fd=directory.fd)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            self.disturbed = True
            self.forget()
        return status

    def purge(self, directory: Directory) -> None:
        """Remove from ``directory``, at any depth, what this layer did not write."""
        if directory.fresh:
            return
        self.disturbed = True
        pending = [b""]
        while pending:
            path = pending.pop()
            with ExitStack() as closing:
                fd = openat2(directory.fd, path or b".", _OPEN_DIRECTORY, resolve=_WITHIN)
                closing.callback(os.close, fd)
                status = os.fstat(fd)
                identity = (status.st_dev, status.st_ino)
                if identity in self._made:
                    continue
                written = self._written.get(identity, set())
                for name in _names(fd):
                    if name.startswith(META_PREFIX):
                        continue
                    if name not in written:
                        remove_tree(fd, name)
                    elif stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        pending.append(path + b"/" + name if path else name)
        self.forget()

    def _keep(self, path: bytes, fd: int, *, fresh: bool) -> Directory:
        directory = self._describe(fd, fresh=fresh)
        self._remember(path, directory)
        return directory

    def _remember(self, path: bytes, directory: Directory) -> None:
        if path in self.kept:  # only if somebody else has removed it
            self._retired.append(self.kept[path])
        self.kept[path] = directory

    def _describe(self, fd: int, *, fresh: bool, top: bool = False) -> Directory:
        try:
            status = os.fstat(fd)
            acl = xattr.find_xattr(fd, b"system.posix_acl_default")
        except OSError:
            os.close(fd)
            raise
        identity = (status.st_dev, status.st_ino)
        return Directory(
            fd,
            acl=acl is not None,
            setgid=bool(status.st_mode & stat.S_ISGID),
            fresh=fresh or not self.tracked or identity in self._made,
            marked=self.deletions.beside and not fresh,
            tracked=self.tracked,
            top=top,
        )

    def _note(self, directory: Directory) -> None:
        """Put the directories on the way to ``directory`` on the account: they are part of the layer."""
        directory.noted = True
        path = self._physical(directory.fd)
        if not path:
            return
        fd = os.dup(self.fd)
        try:
            for name in path.split(b"/"):
                status = os.fstat(fd)
                self._written.setdefault((status.st_dev, status.st_ino), set()).add(name)
                inner = os.open(name, _PROBE | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = inner
        finally:
            os.close(fd)

    def _physical(self, fd: int) -> bytes | None:
        """The path below the root of an open directory; None if somebody moved it away."""
        here, top = (os.readlink(xattr.handle_path(each)) for each in (fd, self.fd))
        if here == top:
            return b""
        return here[len(top) + 1 :] if here.startswith(top + b"/") else None

    def _make(self, path: bytes) -> int:
        """Make what is missing of the directory ``path``; a descriptor of it.

        The kernel cannot make directories while it resolves. So this goes on from the longest part that
        exists; a dangling link is read and its target made, which the kernel then resolves from the root.
        """
        pending = path.split(b"/")[::-1]
        reached, links = b".", 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            step = reached + b"/" + name
            if name == b"..":
                reached = step
                continue
            try:
                os.close(openat2(self.fd, step, _PROBE, resolve=_IN_ROOT))
                reached = step
                continue
            except (FileNotFoundError, NotADirectoryError) as error:
                failure = error
            fd = openat2(self.fd, reached, _OPEN_DIRECTORY, resolve=_IN_ROOT)
            try:
                target = self._link(fd, name)
                if target is not None:
                    links += 1
                    if links > _LINKS:
                        raise os_error(errno.ELOOP, "resolve", path)
                    pending.extend(target.split(b"/")[::-1])
                    if target.startswith(b"/"):
                        reached = b"."
                elif pending and pending[-1] == b"..":
                    pending.pop()  # the parent of what does not exist is where we are
                else:
                    self._make_one(fd, name, step, failure)
                    reached = step
            finally:
                os.close(fd)
        return openat2(self.fd, reached, _OPEN_DIRECTORY, resolve=_IN_ROOT)

    def _make_one(self, fd: int, name: bytes, path: bytes, failure: OSError) -> None:
        """Make the directory ``name`` in ``fd``, in place of a whiteout if there is one."""
        parent = self._describe(os.dup(fd), fresh=False)
        try:
            hidden = self._clear_whiteout(parent, name, failure)
            inherited = None if hidden else self._inherited(fd, name)
            # Only its owner may look inside until it has its own mode.
            os.mkdir(name, 0o700, dir_fd=fd)
            self.wrote(parent, name)
            child = os.open(name, _OPEN_CHILD, dir_fd=fd)
            try:
                status = os.fstat(child)
                if self.tracked:
                    self._made.add((status.st_dev, status.st_ino))
                if parent.acl:
                    strip_acls(child)
                if inherited is None:
                    os.fchown(child, *self._owner)
                    os.fchmod(child, 0o755)
                else:
                    os.fchown(child, inherited.status.st_uid, inherited.status.st_gid)
                    for attribute, value in inherited.xattrs:
                        xattr.set_xattr(child, attribute, value)
                    os.fchmod(child, stat.S_IMODE(inherited.status.st_mode))
                    self.inherited_times.append(
                        (path, inherited.status.st_atime_ns, inherited.status.st_mtime_ns)
                    )
                if hidden:
                    made = self._describe(os.dup(child), fresh=True)
                    try:
                        self.deletions.hide(self, made)
                    finally:
                        os.close(made.fd)
            finally:
                os.close(child)
        finally:
            os.close(parent.fd)

    def _clear_whiteout(self, directory: Directory, name: bytes, failure: OSError) -> bool:
        """Make room for ``name``: True when a whiteout was there, so that lower layers stay hidden."""
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return self.deletions.lift(directory, name)
        if not self.deletions.is_whiteout(status):
            raise failure
        os.unlink(name, dir_fd=directory.fd)
        return True

    def _link(self, fd: int, name: bytes) -> bytes | None:
        try:
            return os.readlink(name, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:  # there, and no link
                return None
            raise

    def _inherited(self, fd: int, name: bytes) -> Inherited | None:
        """The directory that the nearest lower layer has in place of ``name`` in ``fd``."""
        if not self._lower_fds:
            return None
        parent = self._physical(fd)
        if parent is None:
            return None
        path = parent + b"/" + name if parent else name
        for lower in self._lower_fds:
            try:
                found = openat2(lower, path, _OPEN_DIRECTORY, resolve=_BENEATH)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    return None  # deleted or replaced here: what is further down is not its ancestor
                raise
            try:
                attributes = [
                    (attribute, xattr.get_xattr(found, attribute))
                    for attribute in xattr.list_xattrs(found)
                    if not attribute.startswith(b"trusted.") and not is_overlay_attribute(attribute)
                ]
                return Inherited(status=os.fstat(found), xattrs=attributes)
            finally:
                os.close(found)
        return None

    def _close_all(self) -> None:
        for directory in [*self._retired, *self.kept.values()]:
            os.close(directory.fd)
        self._retired.clear()
        self.kept.clear()


def clean(name: bytes) -> bytes:
    """``name`` without leading slash, empty parts, ``.`` and ``x/..``; empty for the root itself.

    Raises ``InvalidArgument`` (``archive.breakout``) for a name above the root.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise InvalidArgument(
                    f"the name {printable(name)} leads out of the layer", code="archive.breakout"
                )
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


def _names(fd: int) -> list[bytes]:
    return os.listdir(xattr.handle_path(fd))
