"""Exporting a layer: the directory of its changes as an OCI layer tar.

Source of the rules: OCI image specification, "Image Layer Filesystem Changeset"; what engines write
where it is silent.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from layerlimit.archive import tarformat
from layerlimit.archive.below import Lowers
from layerlimit.archive.compress import Compression, encoder
from layerlimit.archive.descent import Descent, Directory
from layerlimit.archive.form import OPAQUE_MARKER, OVERLAY_MARKS, OVERLAY_PREFIXES, WHITEOUT_PREFIX, Form
from layerlimit.archive.outflow import Outflow, OutputFailed, Writable
from layerlimit.archive.writer import (
    END,
    attribute_key,
    display,
    file_header,
    header,
    owner_fields,
    padding,
    sparse_header,
)
from layerlimit.errors import Busy, InvalidArgument, NotSupported, from_os_error
from layerlimit.linux import xattr

Times = Literal["s", "ns"]
Owners = Callable[[int, int], tuple[int, int]]  # uid and gid on disk → in the tar

_SECOND: Final = 1_000_000_000
_FORMAT: Final = 0o170000  # S_IFMT
# O_NONBLOCK: a file that was replaced by a FIFO since it was listed must not block the walk.
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_AFTER_PREFIX: Final = WHITEOUT_PREFIX[:-1] + bytes([WHITEOUT_PREFIX[-1] + 1])
_HOLE_WORTH_ASKING: Final = 64 * 1024
_KINDS: Final = {
    stat.S_IFLNK: tarformat.SYMLINK,
    stat.S_IFCHR: tarformat.CHAR_DEVICE,
    stat.S_IFBLK: tarformat.BLOCK_DEVICE,
    stat.S_IFIFO: tarformat.FIFO,
}
_CAPABILITY: Final = b"security.capability"
_CONTENT_ELSEWHERE: Final = frozenset(OVERLAY_MARKS + name for name in (b"redirect", b"metacopy"))


@dataclass(frozen=True, slots=True)
class Written:
    """What an export wrote."""

    #: Length of the uncompressed tar.
    bytes: int
    #: Entries of the tar, whiteouts and markers included.
    entries: int
    #: ``sha256:…`` of the uncompressed tar: OCI's diff ID.
    diff_id: str
    #: ``sha256:…`` of the bytes that went out, and their number; the same as above when not compressed.
    digest: str
    compressed_bytes: int
    #: Sockets that were left out: a tar cannot hold them.
    sockets: int


def write(
    upper: Path,
    out: Writable,
    *,
    form: Form,
    lowers: Sequence[Path] = (),
    compression: Compression | None = None,
    level: int | None = None,
    times: Times = "s",
    sparse: bool = False,
    source_date_epoch: int | None = None,
    live: bool = False,
    owners: Owners | None = None,
) -> Written:
    """Write the changes that the directory ``upper`` holds, in ``form``, to ``out`` as a layer tar.

    The same tree gives the same bytes: parents before children, in each directory the opaque marker, then
    whiteouts, then names by their bytes. Owners are numbers, those that ``owners`` says of the ones on disk.
    Modification times are cut to whole seconds and files written in full, as engines do, unless ``times`` is
    "ns" and ``sparse`` True (GNU's pax form). Times are capped at ``source_date_epoch``, by default the
    environment's SOURCE_DATE_EPOCH. All extended attributes go out but ``trusted.*``, overlayfs's, SELinux's
    and those of a file system itself. Left out: the root's own entry, sockets (counted), ``lost+found`` at
    the top, AUFS's own files. With ``lowers`` (nearest first), an opaque mark over nothing is left out too.
    Holes are not read from disk.

    The cost goes with ``upper``. ``out.write`` may be called by a thread of this call when compressing.
    What it raises passes through. A file that shrinks while it is read raises Busy, never a wrong tar;
    so does a name that vanishes, unless ``live`` allows for it. NotSupported names the entry that a
    layer tar cannot hold: a name that reads as a whiteout, overlayfs's redirected directories and
    metadata-only copies. On any error what went to ``out`` is an incomplete tar, to be thrown away.
    """
    if times not in ("s", "ns"):
        raise InvalidArgument(f"unknown precision of times {times!r}", hint="s or ns")
    newest = _environment_epoch() if source_date_epoch is None else source_date_epoch
    compressor = encoder(compression, level) if compression else None
    with ExitStack() as resources:
        try:
            below = resources.enter_context(Lowers(lowers, form)) if lowers else None
            descent = resources.enter_context(Descent(upper, form))
        except OSError as error:
            raise from_os_error(error, f"export {upper}") from error
        out_flow = resources.enter_context(Outflow(out, compressor))
        export = _Export(descent, out_flow, form, below)
        export.newest = newest
        export.whole_seconds = times == "s"
        export.sparse = sparse
        export.live = live
        export.owners = owners
        try:
            export.run()
            out_flow.put(END)
            out_flow.finish()
        except OutputFailed as error:
            raise error.error from None
        except OSError as error:
            where = f"{upper}/{display(export.at)}"
            raise from_os_error(error, f"export {where}") from error
        return Written(
            bytes=out_flow.total,
            entries=export.entries,
            diff_id=out_flow.diff_id,
            digest=out_flow.digest,
            compressed_bytes=out_flow.written,
            sockets=export.sockets,
        )


def _environment_epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"SOURCE_DATE_EPOCH is {text!r}", hint="seconds since 1970, or unset it")
    return int(text)


class _Export:
    """One walk of a layer's directory into an outflow."""

    def __init__(self, descent: Descent, out: Outflow, form: Form, below: Lowers | None) -> None:
        self.entries = 0
        self.sockets = 0
        self.at = b""  # the entry being written, for messages
        self.newest: int | None = None  # seconds
        self.whole_seconds = True
        self.sparse = False
        self.live = False
        self.owners: Owners | None = None
        self._descent = descent
        self._out = out
        self._form = form
        self._below = below
        self._links: dict[tuple[int, int], bytes] = {}
        self._flags = _OPEN | os.O_NOATIME  # an export leaves no trace where it may

    def run(self) -> None:
        """Write all entries."""
        descent = self._descent
        self._marks(descent.here)
        while descent:
            here = descent.here
            directories, others = here.listing.directories, here.listing.others
            for name in here.rest:
                self.at = path = here.prefix + name
                try:
                    if name in directories:
                        self._directory(descent.enter(name))
                        break
                    if name in others:
                        self._special(here.fd, name, path)
                    else:
                        self._regular(here.fd, name, path)
                except FileNotFoundError:
                    if not self.live:
                        raise
            else:
                descent.leave()

    def _directory(self, here: Directory) -> None:
        records = self._records(here.fd, here.attributes)
        self._put(here.prefix, tarformat.DIRECTORY, here.status, records=records)
        self._marks(here)

    def _marks(self, here: Directory) -> None:
        listing, prefix, status = here.listing, here.prefix, here.status
        if self._form is not Form.AUFS:
            self._refuse_reserved(prefix, listing.names)
        if listing.opaque and (self._below is None or not prefix or self._below.has_directory(prefix)):
            # Owner and permissions as moby writes them; times as containerd writes those of whiteouts.
            mode = status.st_mode & 0o777
            name = prefix + OPAQUE_MARKER
            self._out.put(header(name, tarformat.REGULAR, mode, *self._owner(status), 0, 0))
            self.entries += 1
        for deleted in listing.whiteouts:
            name = prefix + WHITEOUT_PREFIX + deleted
            self._out.put(header(name, tarformat.REGULAR, 0, 0, 0, 0, 0))
            self.entries += 1

    def _refuse_reserved(self, prefix: bytes, names: Sequence[bytes]) -> None:
        at = bisect_left(names, WHITEOUT_PREFIX)
        if at < bisect_left(names, _AFTER_PREFIX):
            raise NotSupported(
                f"cannot export {display(prefix + names[at])}: in a layer tar that name means a deletion",
                hint="rename the file",
                code="archive.reserved_name",
            )

    def _regular(self, directory: int, name: bytes, path: bytes) -> None:
        try:
            fd = os.open(name, self._flags, dir_fd=directory)
        except OSError as error:
            fd = self._open_again(directory, name, path, error)
            if fd < 0:
                return
        try:
            status = os.fstat(fd)
            mode, size = status.st_mode, status.st_size
            if mode & _FORMAT != stat.S_IFREG:
                self._special(directory, name, path)
                return
            if status.st_nlink > 1 and self._is_linked(status, path):
                return
            attributes = os.listxattr(fd)
            records = self._records(fd, [os.fsencode(key) for key in attributes]) if attributes else None
            if size >= _HOLE_WORTH_ASKING and status.st_blocks * 512 < size:
                self._with_holes(fd, path, status, records)
                return
            head = None
            if records is None and self.whole_seconds and size <= tarformat.MAX_OCTAL_11:
                seconds = int(status[stat.ST_MTIME])  # without the detour by nanoseconds
                if self.newest is not None and seconds > self.newest:
                    seconds = self.newest
                owner = owner_fields(mode & 0o7777, *self._owner(status))
                head = file_header(path, owner, size, seconds)
            if head is None:
                head = self._header(path, tarformat.REGULAR, status, size=size, records=records)
            self.entries += 1
            if self._out.put_file(head, fd, size) != size:
                raise self._shrunk()
        finally:
            os.close(fd)

    def _open_again(self, directory: int, name: bytes, path: bytes, error: OSError) -> int:
        """What to do when a regular file could not be opened; a descriptor, or -1 when it is written."""
        if error.errno in (errno.ELOOP, errno.ENXIO):  # it became a symlink or a socket since it was listed
            self._special(directory, name, path)
            return -1
        if (
            error.errno == errno.EPERM and self._flags & os.O_NOATIME
        ):  # the owner's or CAP_FOWNER's to ask for
            self._flags &= ~os.O_NOATIME
            return os.open(name, self._flags, dir_fd=directory)
        raise error

    def _data(self, fd: int, size: int) -> None:
        if self._out.copy(fd, size) != size:
            raise self._shrunk()

    def _shrunk(self) -> Busy:
        return Busy(
            f"cannot export {display(self.at)}: it shrank while it was read",
            hint="stop what writes to the layer, or unmount it, and export it again",
            code="archive.file_changed",
        )

    def _with_holes(
        self, fd: int, path: bytes, status: os.stat_result, records: Mapping[bytes, bytes] | None
    ) -> None:
        size = status.st_size
        segments = _segments(fd, size)
        if self.sparse and segments != [(0, size)]:
            times = self._time(status)
            mode = stat.S_IMODE(status.st_mode)
            head = sparse_header(path, mode, *self._owner(status), size, times, segments, records)
            self._out.put(head)
            self.entries += 1
            for start, length in segments:
                os.lseek(fd, start, os.SEEK_SET)
                self._data(fd, length)
            self._out.put(padding(sum(length for _, length in segments)))
            return
        self._put(path, tarformat.REGULAR, status, size=size, records=records)
        position = 0
        for start, length in segments:
            self._out.zeros(start - position)
            os.lseek(fd, start, os.SEEK_SET)
            self._data(fd, length)
            position = start + length
        self._out.zeros(size - position)
        self._out.put(padding(size))

    def _special(self, directory: int, name: bytes, path: bytes) -> None:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        form = stat.S_IFMT(status.st_mode)
        if form == stat.S_IFSOCK:
            self.sockets += 1
            return
        kind = _KINDS.get(form)
        if kind is None:
            raise OSError(errno.ESTALE, "it was replaced while the layer was read", name)
        device = None
        if kind in (tarformat.CHAR_DEVICE, tarformat.BLOCK_DEVICE):
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
            if kind == tarformat.CHAR_DEVICE and device == (0, 0):
                raise NotSupported(
                    f"cannot export {display(path)}: a character device 0:0 would read as a deletion",
                    hint="remove it from the layer",
                    code="archive.reserved_name",
                )
        if status.st_nlink > 1 and self._is_linked(status, path):
            return
        link = os.readlink(name, dir_fd=directory) if kind == tarformat.SYMLINK else b""
        place = xattr.entry_path(directory, name)
        records = self._records(place, xattr.list_xattrs(place))
        self._put(path, kind, status, link=link, device=device, records=records)

    def _is_linked(self, status: os.stat_result, path: bytes) -> bool:
        """Write a link to the name that carried the inode before; False when this is the first."""
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        if first is path:
            return False
        self._put(path, tarformat.HARD_LINK, status, link=first)
        return True

    def _put(
        self,
        path: bytes,
        kind: int,
        status: os.stat_result,
        *,
        size: int = 0,
        link: bytes = b"",
        device: tuple[int, int] | None = None,
        records: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self._out.put(self._header(path, kind, status, size=size, link=link, device=device, records=records))
        self.entries += 1

    def _header(
        self,
        path: bytes,
        kind: int,
        status: os.stat_result,
        *,
        size: int = 0,
        link: bytes = b"",
        device: tuple[int, int] | None = None,
        records: Mapping[bytes, bytes] | None = None,
    ) -> bytes:
        mode = stat.S_IMODE(status.st_mode)
        return header(path, kind, mode, *self._owner(status), size, self._time(status), link, device, records)

    def _owner(self, status: os.stat_result) -> tuple[int, int]:
        uid, gid = status.st_uid, status.st_gid
        return (uid, gid) if self.owners is None else self.owners(uid, gid)

    def _time(self, status: os.stat_result) -> int:
        time = status.st_mtime_ns
        if self.newest is not None and time > self.newest * _SECOND:
            time = self.newest * _SECOND
        return time - time % _SECOND if self.whole_seconds else time

    def _records(self, target: int | bytes, attributes: Sequence[bytes]) -> dict[bytes, bytes] | None:
        """The pax records of the attributes that leave with the entry; None when there are none."""
        records: dict[bytes, bytes] = {}
        for key in attributes:
            if key.startswith(OVERLAY_PREFIXES):
                self._refuse_unportable(key)
            elif _is_exported(key):
                value = xattr.find_xattr(target, key)
                if value is not None:
                    records[attribute_key(key)] = _capability(value) if key == _CAPABILITY else value
        return records or None

    def _refuse_unportable(self, key: bytes) -> None:
        if self._form is Form.OVERLAY and key in _CONTENT_ELSEWHERE:
            raise NotSupported(
                f"cannot export {display(self.at)}: overlayfs keeps its content elsewhere ({display(key)})",
                hint="layers must be mounted with redirect_dir=nofollow,metacopy=off",
                code="archive.not_portable",
            )


def _is_exported(key: bytes) -> bool:
    namespace = key.partition(b".")[0]
    if namespace == b"security":
        return key != b"security.selinux"  # it belongs to the machine's policy
    return namespace == b"user" or key.startswith(b"system.posix_acl_")


def _capability(value: bytes) -> bytes:
    # Revision 3 names the user namespace's root, which has no meaning elsewhere; revision 2 is its first 20
    # bytes (linux/capability.h, struct vfs_ns_cap_data).
    if len(value) == 24 and value[3] == 3:
        return value[:3] + b"\x02" + value[4:20]
    return value


def _segments(fd: int, size: int) -> list[tuple[int, int]]:
    """The (offset, length) pairs of a file that hold data, as the file system tells without reading."""
    segments: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but hole up to the end
                break
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            segments.append((start, end - start))
        position = end
    os.lseek(fd, 0, os.SEEK_SET)
    return segments
