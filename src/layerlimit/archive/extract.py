"""The entries of a layer, made one after the other in a :class:`~layerlimit.archive.contain.Tree`."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import tempfile
from types import TracebackType
from typing import IO, Self

from layerlimit.archive import native
from layerlimit.archive import tarformat as tar
from layerlimit.archive.contain import Deletions, Directory, Tree, clean
from layerlimit.archive.form import AUFS_LINKS, META_PREFIX, OPAQUE_MARKER, WHITEOUT_PREFIX
from layerlimit.archive.limits import MIB, Limits
from layerlimit.archive.metadata import (
    DEFAULT_ACL,
    MAX_TIME,
    Notes,
    check_owner,
    chmod_entry,
    entry_times,
    process_umask,
    set_xattrs,
    strip_acls,
)
from layerlimit.archive.plnk import LinkStore
from layerlimit.archive.reader import Reader
from layerlimit.archive.tarformat import invalid, printable
from layerlimit.errors import InvalidArgument
from layerlimit.linux import files, xattr
from layerlimit.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV, openat2

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_SET_IDS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
# Linux has 12 and 20 bits and cuts off the rest: 4096:0 would become 0:0 (MKDEV in linux/kdev_t.h).
_MAX_MAJOR, _MAX_MINOR = 2**12 - 1, 2**20 - 1
_ACL_LATER = frozenset({DEFAULT_ACL})
# A directory's times and default ACL wait for the end; this many bytes of them in memory, then in a file.
_WAITING_BYTES = 4 * MIB
_WAITING = struct.Struct("=IIqq")  # length of the path, length of the ACL, atime, mtime
_DOT = ord(".")
_SHORT = 255  # names up to here need no look at their parts


class Extractor:
    """Takes the entries of ``reader`` into ``tree``; a context manager.

    :meth:`run` is the work. ``bytes`` sums what :class:`Applied` says; ``notes`` lists what was
    left out on purpose. What :meth:`run` raises leaves the tree in the middle of the layer.
    """

    def __init__(self, reader: Reader, tree: Tree, deletions: Deletions, *, limits: Limits) -> None:
        self._reader = reader
        self._tree = tree
        self._deletions = deletions
        self._limits = limits
        self._links = LinkStore()
        self._waiting: IO[bytes] = io.BytesIO()
        self._waiting_bytes = 0
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._umask = process_umask()
        self._fix = self._umask | _SET_IDS
        self._short = (
            _SHORT
            if min(limits.path_bytes, limits.component_bytes) >= _SHORT and limits.depth > _SHORT // 2
            else 0
        )
        self.bytes = 0
        self.notes = Notes()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._links.close()
        self._waiting.close()

    def run(self) -> None:
        """Extract all entries, and set the times of directories at the end."""
        reader, tree, short = self._reader, self._tree, self._short
        regular, advance, kept, new_file = tar.REGULAR, reader.advance, tree.kept, self._new_file
        while True:
            if native.core is not None:
                self._make_plain(native.core)
                kept = tree.kept
            if not advance():
                break
            # Most entries are files in a directory that is open. Directories are kept by their cleaned paths,
            # so what is found needs no cleaning; a last part that starts with a dot may be a mark or "..".
            if reader.type == regular:
                name = reader.name
                head, _, base = name.rpartition(b"/")
                directory = kept.get(head)
                if (
                    directory is not None
                    and directory.plain
                    and base
                    and base[0] != _DOT
                    and len(name) <= short
                    and not reader.xattrs
                    and reader.regions is None
                    and new_file(directory.fd, base)
                ):
                    continue
            self._entry()
            kept = tree.kept
        self._finish()

    def _make_plain(self, core: native.Core) -> None:
        """Let the native core make the plain entries that come next; it stops at the first other one."""
        reader, tree, short = self._reader, self._tree, self._short
        uid, gid, fix, whiteouts = self._uid, self._gid, self._fix, self._deletions.in_place
        chunk, start, end, most = reader.lend()
        while start < end:
            tree.begin()
            start, entries, size, name, waiting = core.extract(
                chunk, start, end, tree.kept, tree.adopt, tree.room, most, short, uid, gid, fix, whiteouts
            )
            if name is None:
                return
            reader.passed(start, entries, name)
            most -= entries
            self.bytes += size
            self._keep_waiting(waiting)
            if tree.room:
                return

    def _new_file(self, parent: int, base: bytes) -> bool:
        """The short way for a new plain file; False, with nothing done, if the name is taken."""
        reader = self._reader
        mode = reader.mode
        try:
            fd = os.open(base, _CREATE, mode & 0o777, dir_fd=parent)
        except FileExistsError:
            return False
        try:
            if reader.size:
                self._write(fd)
            if reader.uid != self._uid or reader.gid != self._gid:
                check_owner(reader)
                os.fchown(fd, reader.uid, reader.gid)
            if mode & self._fix:
                os.fchmod(fd, mode)
            mtime = reader.mtime
            if reader.atime is None and 0 <= mtime <= MAX_TIME:
                os.utime(fd, ns=(mtime, mtime))
            else:
                os.utime(fd, ns=entry_times(reader))
        finally:
            os.close(fd)
        return True

    def _write(self, fd: int) -> None:
        take, left = self._reader.take, self._reader.size
        self.bytes += left
        while left:
            piece = take()
            files.write_whole(fd, piece)
            left -= len(piece)

    def _write_sparse(self, fd: int) -> None:
        reader = self._reader
        regions = reader.regions
        assert regions is not None
        self.bytes += reader.size
        piece = memoryview(b"")
        for index in range(0, len(regions), 2):
            offset, left = regions[index], regions[index + 1]
            while left:
                if not piece:
                    piece = reader.take()
                written = os.pwrite(fd, piece[:left], offset)
                piece = piece[written:]
                offset += written
                left -= written
        os.ftruncate(fd, reader.size)

    def _entry(self) -> None:
        """Any entry, with all its care."""
        self._tree.begin()
        path = self._checked(self._reader.name)
        if not path:
            return  # the root: its owner, mode and times are not the layer's to set
        if path.startswith(META_PREFIX) and path != OPAQUE_MARKER:
            self._aufs_own(path)
            return
        head, _, base = path.rpartition(b"/")
        if base == OPAQUE_MARKER:
            self._hide(head)
            return
        if base.startswith(META_PREFIX):
            return
        if base.startswith(WHITEOUT_PREFIX):
            self._delete(head, base[len(WHITEOUT_PREFIX) :])
            return
        check_owner(self._reader)
        match self._reader.type:
            case tar.REGULAR:
                self._regular(head, base)
            case tar.DIRECTORY:
                self._directory(path, head, base)
            case tar.HARD_LINK:
                self._hard_link(head, base)
            case tar.SYMLINK:
                self._symlink(head, base)
            case _:
                self._special(head, base)

    def _checked(self, name: bytes) -> bytes:
        """``name`` cleaned and within the limits."""
        limits, marked = self._limits, name.replace(b"/.wh.", b"/")
        if name and len(name) <= self._short and name[0] > 47 and b"/." not in marked and b"//" not in name:
            return name.rstrip(b"/")  # as in run()
        path = clean(name)
        if len(path) > limits.path_bytes:
            raise invalid(f"the name {printable(path)} has {len(path)} bytes", code="archive.limit")
        if len(path) > min(limits.component_bytes, limits.depth):
            parts = path.split(b"/")
            if len(parts) > limits.depth:
                raise invalid(f"the name {printable(path)} has {len(parts)} levels", code="archive.limit")
            # The name that a whiteout deletes may be as long as any.
            longest = max(len(part.removeprefix(WHITEOUT_PREFIX)) for part in parts)
            if longest > limits.component_bytes:
                raise invalid(
                    f"a part of the name {printable(path)} has {longest} bytes", code="archive.limit"
                )
        return path

    def _aufs_own(self, path: bytes) -> None:
        """AUFS's own files at the top: hard-linked content is kept for its links, the rest left out."""
        store, _, name = path.partition(b"/")
        if store == AUFS_LINKS and name and self._reader.type == tar.REGULAR:
            self._links.add(self._tree.fd, name, self._reader)

    def _delete(self, head: bytes, name: bytes) -> None:
        if name in (b"", b".", b".."):
            raise invalid(f"the whiteout {printable(self._reader.name)} names no entry")
        directory = self._marked_directory(head)
        if directory is None:
            return
        if self._deletions.in_place:
            try:
                self._deletions.delete(self._tree, directory, name)
                return
            except FileExistsError:
                pass  # it was written by this archive, or before
        self._tree.remove(directory, name)
        self._deletions.delete(self._tree, directory, name)

    def _hide(self, head: bytes) -> None:
        directory = self._marked_directory(head)
        if directory is None:
            return
        self._tree.purge(directory)
        self._deletions.hide(self._tree, directory)

    def _marked_directory(self, head: bytes) -> Directory | None:
        """Where a mark goes; None when there is nothing to mark and no need to record it.

        Below a file there is nothing to delete; umoci writes such marks for a directory that became a file.
        """
        try:
            return self._tree.ensure(head) if self._deletions.recorded else self._tree.directory(head)
        except NotADirectoryError:
            return None

    def _regular(self, head: bytes, base: bytes) -> None:
        reader = self._reader
        directory = self._ready(head, base)
        fd = self._create(directory, base)
        try:
            if reader.regions is not None:
                self._write_sparse(fd)
            elif reader.size:
                self._write(fd)
            self._file_metadata(fd, directory, reader)
        finally:
            os.close(fd)

    def _file_metadata(self, fd: int, directory: Directory, reader: Reader) -> None:
        if directory.acl:
            strip_acls(fd)
        if reader.uid != self._uid or reader.gid != self._gid or not directory.exact:
            os.fchown(fd, reader.uid, reader.gid)
        if reader.xattrs:
            set_xattrs(fd, reader, self.notes, plain=True)
        if reader.mode & self._fix or not directory.exact:
            os.fchmod(fd, reader.mode)
        os.utime(fd, ns=entry_times(reader))

    def _directory(self, path: bytes, head: bytes, base: bytes) -> None:
        reader, tree = self._reader, self._tree
        directory = self._tree.ensure(head)
        hidden = self._deletions.lift(directory, base)
        kept = False
        try:
            os.mkdir(base, reader.mode & 0o777, dir_fd=directory.fd)
        except FileExistsError:
            status = os.stat(base, dir_fd=directory.fd, follow_symlinks=False)
            kept = stat.S_ISDIR(status.st_mode)
            if not kept:
                # What was here hid the lower layers' directory of this name, and so does its successor.
                hidden = True
                tree.remove(directory, base)
                os.mkdir(base, reader.mode & 0o777, dir_fd=directory.fd)
        tree.wrote(directory, base)
        child = (tree.opened if kept else tree.made)(path, directory, base)
        if hidden:
            self._deletions.hide(tree, child)
        if directory.acl and not kept:
            strip_acls(child.fd)
        if kept or reader.uid != self._uid or reader.gid != self._gid or not directory.exact:
            os.fchown(child.fd, reader.uid, reader.gid)
        acl = b""
        if reader.xattrs:
            # Set now, a default ACL would pass to everything that is made in the directory.
            set_xattrs(child.fd, reader, self.notes, plain=True, skip=_ACL_LATER)
            acl = reader.xattrs.get(DEFAULT_ACL, b"")
        if kept or reader.mode & self._fix or not directory.exact:
            os.fchmod(child.fd, reader.mode)
        child.changed(mode=reader.mode, acl=kept and child.acl)
        self._wait(path, acl, *entry_times(reader))

    def _wait(self, path: bytes, acl: bytes, atime: int, mtime: int) -> None:
        """Keep what is to be set on the directory ``path`` at the end."""
        self._keep_waiting(_WAITING.pack(len(path), len(acl), atime, mtime) + path + acl)

    def _keep_waiting(self, records: bytes) -> None:
        self._waiting.write(records)
        self._waiting_bytes += len(records)
        if self._waiting_bytes > _WAITING_BYTES and isinstance(self._waiting, io.BytesIO):
            held, self._waiting = self._waiting, tempfile.TemporaryFile()  # noqa: SIM115 - closed at exit
            self._waiting.write(held.getbuffer())

    def _symlink(self, head: bytes, base: bytes) -> None:
        reader = self._reader
        directory = self._ready(head, base)
        if not reader.link_name:
            raise invalid(f"the symbolic link {printable(reader.name)} has no target")
        try:
            os.symlink(reader.link_name, base, dir_fd=directory.fd)
        except FileExistsError:
            self._tree.remove(directory, base)
            os.symlink(reader.link_name, base, dir_fd=directory.fd)
        if reader.uid != self._uid or reader.gid != self._gid or not directory.exact:
            os.chown(base, reader.uid, reader.gid, dir_fd=directory.fd, follow_symlinks=False)
        if reader.xattrs:
            set_xattrs(xattr.entry_path(directory.fd, base), reader, self.notes, plain=False)
        os.utime(base, ns=entry_times(reader), dir_fd=directory.fd, follow_symlinks=False)
        self.bytes += len(reader.link_name)

    def _special(self, head: bytes, base: bytes) -> None:
        reader = self._reader
        device, kind = 0, stat.S_IFIFO
        if reader.type != tar.FIFO:
            if not (0 <= reader.major <= _MAX_MAJOR and 0 <= reader.minor <= _MAX_MINOR):
                raise invalid(f"entry {printable(reader.name)} has an impossible device number")
            if reader.type == tar.CHAR_DEVICE and reader.major == reader.minor == 0:
                raise invalid(
                    f"entry {printable(reader.name)} is the device 0:0, which overlayfs takes for a deletion"
                )
            device = os.makedev(reader.major, reader.minor)
            kind = stat.S_IFCHR if reader.type == tar.CHAR_DEVICE else stat.S_IFBLK
        directory = self._ready(head, base)
        mode = kind | reader.mode & 0o777
        try:
            try:
                os.mknod(base, mode, device, dir_fd=directory.fd)
            except FileExistsError:
                self._tree.remove(directory, base)
                os.mknod(base, mode, device, dir_fd=directory.fd)
        except PermissionError:
            if kind == stat.S_IFIFO or not _in_user_namespace():
                raise
            self.notes.add(f"device {printable(reader.name)} cannot be made in a user namespace")
            return
        if directory.acl:
            strip_acls(xattr.entry_path(directory.fd, base))
        if reader.uid != self._uid or reader.gid != self._gid or not directory.exact:
            os.chown(base, reader.uid, reader.gid, dir_fd=directory.fd, follow_symlinks=False)
        if reader.xattrs:
            set_xattrs(xattr.entry_path(directory.fd, base), reader, self.notes, plain=False)
        if reader.mode & self._fix or not directory.exact:
            chmod_entry(directory.fd, base, reader.mode)
        os.utime(base, ns=entry_times(reader), dir_fd=directory.fd, follow_symlinks=False)

    def _hard_link(self, head: bytes, base: bytes) -> None:
        reader, tree = self._reader, self._tree
        target = self._checked(reader.link_name)
        if target.startswith(AUFS_LINKS + b"/"):
            self._stored_link(head, base, target[len(AUFS_LINKS) + 1 :])
            return
        target_head, _, target_base = target.rpartition(b"/")
        if not target_base or target_base.startswith(WHITEOUT_PREFIX):
            raise self._bad_link("is no file")
        source = tree.directory(target_head)
        status = None
        if source is not None:
            try:
                status = os.stat(target_base, dir_fd=source.fd, follow_symlinks=False)
            except FileNotFoundError:
                pass
        if source is None or status is None or self._deletions.is_whiteout(status):
            raise self._bad_link("is not in the layer")
        if stat.S_ISDIR(status.st_mode):
            raise self._bad_link("is a directory")
        directory = self._ready(head, base)
        if directory.identity == source.identity and base == target_base:
            raise self._bad_link("is the link itself")
        names = {"src_dir_fd": source.fd, "dst_dir_fd": directory.fd}
        try:
            os.link(target_base, base, **names, follow_symlinks=False)
        except FileExistsError:
            tree.remove(directory, base)
            os.link(target_base, base, **names, follow_symlinks=False)
        # An inode from before may be shared with a tree that this one will replace only if all goes well.
        if tree.is_ours(source, target_base):
            self._link_metadata(directory, base, status)

    def _link_metadata(self, directory: Directory, base: bytes, status: os.stat_result) -> None:
        """The link's header once more, as engines do: what differs from the file is set on it."""
        reader = self._reader
        chowned = (status.st_uid, status.st_gid) != (reader.uid, reader.gid)
        if chowned:
            os.chown(base, reader.uid, reader.gid, dir_fd=directory.fd, follow_symlinks=False)
        link = stat.S_ISLNK(status.st_mode)
        if reader.xattrs:
            path = xattr.entry_path(directory.fd, base)
            set_xattrs(path, reader, self.notes, plain=stat.S_ISREG(status.st_mode))
        if link:
            return
        if chowned or stat.S_IMODE(status.st_mode) != reader.mode:
            chmod_entry(directory.fd, base, reader.mode)
        times = entry_times(reader)
        if status.st_mtime_ns != times[1] or reader.atime is not None:
            os.utime(base, ns=times, dir_fd=directory.fd, follow_symlinks=False)

    def _stored_link(self, head: bytes, base: bytes, name: bytes) -> None:
        """A link into AUFS's store becomes a copy of what the store had."""
        stored = self._links.find(name)
        if stored is None:
            raise self._bad_link("is not in AUFS's store of hard links")
        directory = self._ready(head, base)
        fd = self._create(directory, base)
        try:
            self._links.copy(stored, fd)
            self.bytes += stored.size
            if directory.acl:
                strip_acls(fd)
            os.fchown(fd, stored.uid, stored.gid)
            os.fchmod(fd, stored.mode)
            os.utime(fd, ns=stored.times)
        finally:
            os.close(fd)

    def _ready(self, head: bytes, base: bytes) -> Directory:
        """The parent of an entry that is about to be made."""
        directory = self._tree.ensure(head)
        self._deletions.lift(directory, base)
        self._tree.wrote(directory, base)
        return directory

    def _create(self, directory: Directory, base: bytes) -> int:
        """A new, empty regular file, in place of whatever has its name."""
        mode = self._reader.mode & 0o777
        try:
            return os.open(base, _CREATE, mode, dir_fd=directory.fd)
        except FileExistsError:
            self._tree.remove(directory, base)
            return os.open(base, _CREATE, mode, dir_fd=directory.fd)

    def _bad_link(self, why: str) -> InvalidArgument:
        return InvalidArgument(
            f"entry {printable(self._reader.name)} is a hard link to"
            f" {printable(self._reader.link_name)}, which {why}",
            code="archive.link",
        )

    def _finish(self) -> None:
        """Marks that wait for all names, then the times of directories, which their entries changed."""
        tree = self._tree
        tree.begin()
        self._deletions.finish(tree)
        for path, atime, mtime in tree.inherited_times:
            self._set_directory(path, b"", atime, mtime)
        self._waiting.seek(0)
        records = b""
        while more := self._waiting.read(MIB):
            records = self._set_directories(records + more)

    def _set_directories(self, records: bytes) -> bytes:
        """Set what has waited; what is left is the beginning of a record."""
        at = 0
        while True:
            if native.core is not None:
                at = native.core.set_times(self._tree.fd, records, at)
            if len(records) - at < _WAITING.size:
                return records[at:]
            path_length, acl_length, atime, mtime = _WAITING.unpack_from(records, at)
            path_end = at + _WAITING.size + path_length
            if len(records) < path_end + acl_length:
                return records[at:]
            path, acl = records[path_end - path_length : path_end], records[path_end : path_end + acl_length]
            self._set_directory(path, acl, atime, mtime)
            at = path_end + acl_length

    def _set_directory(self, path: bytes, acl: bytes, atime: int, mtime: int) -> None:
        try:
            fd = openat2(self._tree.fd, path, _OPEN_DIRECTORY, resolve=_IN_ROOT)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # a later entry removed or replaced it
            raise
        try:
            if acl:
                xattr.set_xattr(fd, DEFAULT_ACL, acl)
            os.utime(fd, ns=(atime, mtime))
        finally:
            os.close(fd)


def _in_user_namespace() -> bool:
    with open("/proc/self/uid_map", "rb") as uid_map:
        return uid_map.read().split() != [b"0", b"0", b"4294967295"]
