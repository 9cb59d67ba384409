"""A tar archive, read entry by entry from a stream of chunks, in constant memory.

Understands ustar, pax (``x`` headers; ``g`` headers are ignored, as containerd and Docker do), GNU (long
names, base-256 numbers, old sparse files), GNU's sparse files in pax form and extended attributes as
``SCHILY.xattr`` records. Anything else raises ``InvalidArgument``; nothing is guessed.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from zlib import adler32

from layerlimit.archive import sparse
from layerlimit.archive import tarformat as tar
from layerlimit.archive.limits import Limits
from layerlimit.errors import InvalidArgument, OutOfSpace

# Name; mode and ids together; size; mtime; checksum; type; magic and version; the first byte of the prefix.
_HEADER = struct.Struct("100s24s12s12s8sB100x8s80xB")
_HEADER_ONLY = frozenset(
    {tar.HARD_LINK, tar.SYMLINK, tar.CHAR_DEVICE, tar.BLOCK_DEVICE, tar.DIRECTORY, tar.FIFO}
)
_WITH_DATA = frozenset({tar.REGULAR, tar.CONTIGUOUS, tar.GNU_SPARSE})
_META = frozenset({tar.PAX_HEADER, tar.PAX_GLOBAL, tar.GNU_LONG_NAME, tar.GNU_LONG_LINK})
_REMEMBERED = 4096  # values of fields, which repeat: reading one anew costs a microsecond
_NO_XATTRS: dict[bytes, bytes] = {}
_EMPTY = memoryview(b"")


class Reader:
    """A cursor: :meth:`advance` goes to the next entry and sets the attributes to what its headers say.

    The attributes hold raw bytes and numbers; nothing is cleaned or clamped. Content not taken by
    :meth:`take` is skipped. ``source`` returns the next chunk of the uncompressed archive and an empty one
    at its end; a chunk is not touched after the next call, and every chunk but the last is a multiple of
    512 bytes, so that no header lies across two.

    Not for several threads. Raises ``InvalidArgument`` (codes ``archive.invalid``, ``archive.checksum``,
    ``archive.truncated``, ``archive.unsupported``, ``archive.limit``) and ``OutOfSpace`` (``archive.limit``).
    """

    __slots__ = (
        "_checks",
        "_chunk",
        "_end",
        "_expanded",
        "_left",
        "_limits",
        "_most_entries",
        "_owners",
        "_pad",
        "_position",
        "_source",
        "_start",
        "_times",
        "atime",
        "entries",
        "gid",
        "link_name",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "regions",
        "size",
        "type",
        "uid",
        "xattrs",
    )

    name: bytes
    #: One of the type flags of :mod:`tarformat`; ``REGULAR`` for every spelling of a regular file.
    type: int
    #: Permission bits with set-id and sticky bits, nothing else.
    mode: int
    uid: int
    gid: int
    #: Bytes of the file, holes included; 0 for everything that is not a regular file.
    size: int
    #: Nanoseconds since 1970, of any sign and size.
    mtime: int
    #: None where the archive has no access time.
    atime: int | None
    link_name: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    #: Where the stored bytes of a sparse file go; None for a file stored whole.
    regions: sparse.Regions | None
    #: Entries so far.
    entries: int

    def __init__(self, source: Callable[[], memoryview], *, limits: Limits | None = None) -> None:
        self._source = source
        self._limits = limits or Limits()
        self._chunk = _EMPTY
        self._start = 0  # of the chunk, in the archive
        self._position = self._end = 0  # in the chunk
        self._left = self._pad = 0  # stored bytes of this entry that were not taken, and their padding
        self._expanded = 0  # bytes of holes
        self._times: dict[bytes, int] = {}
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._checks: dict[bytes, int] = {}
        self._most_entries = self._limits.entries
        self.entries = 0
        self.name = b""

    @property
    def offset(self) -> int:
        """Bytes of the archive read so far."""
        return self._start + self._position

    def advance(self) -> bool:
        """Go to the next entry; False at the end of the archive."""
        pax: dict[bytes, bytes] | None = None
        long_name = long_link = None
        unpack, times = _HEADER.unpack_from, self._times
        while True:
            if self._left:
                self._skip()
            # Blocks never lie across chunks, so neither does padding.
            position = self._position + self._pad
            self._pad = 0
            if position > self._end:
                raise self._truncated("in the padding")
            self._position = position
            if position == self._end:
                if not self._refill():
                    return self._finished(pax, long_name, long_link)
                position = 0
            chunk = self._chunk
            if self._end - position < tar.BLOCK:
                raise self._truncated("in a header")
            middle, stop = position + 256, position + tar.BLOCK
            name, owner, size_field, mtime_field, check, kind, magic, prefixed = unpack(chunk, position)
            # The low half of adler32 is a sum of bytes, exact for 256 of them: see tarformat.checksum().
            total = (adler32(chunk[position:middle]) & 0xFFFF) + (adler32(chunk[middle:stop]) & 0xFFFF)
            if total == 2 and self._at_zero_block(stop):
                return self._finished(pax, long_name, long_link)
            if self._checks.get(check) != total:
                self._verify(bytes(chunk[position:stop]), total)
            self._position = stop
            name = name.partition(b"\0")[0]
            if prefixed and magic == b"ustar\x0000":
                name = self._prefix(position) + b"/" + name
            self.name = name if long_name is None else long_name
            try:
                digits = size_field[:11]
                if size_field[11] == 0 and digits.isdigit():
                    size = int(digits, 8)
                else:
                    size = tar.parse_number(size_field, "size")
                    if size < 0:
                        raise tar.invalid(f"a tar header has the size {size}")
                if kind in _META:
                    content = self._content(size, kind)
                    if kind == tar.PAX_HEADER:
                        pax = self._pax(content)
                    elif kind == tar.GNU_LONG_NAME:
                        long_name = content.partition(b"\0")[0]
                    elif kind == tar.GNU_LONG_LINK:
                        long_link = content.partition(b"\0")[0]
                    continue
                self.type = kind
                known = self._owners.get(owner)
                self.mode, self.uid, self.gid = self._owner(owner) if known is None else known
                seconds = times.get(mtime_field)
                if seconds is None:
                    seconds = self._time(mtime_field)
                self.mtime = seconds * 1_000_000_000
                self.atime = None
                self.xattrs = _NO_XATTRS
                self.regions = None
                if kind != tar.REGULAR:
                    self._link_or_device(kind, bytes(chunk[position:stop]))
                if pax:
                    size = self._merge(pax, size)
                if long_name is not None:
                    self.name = long_name
                if long_link is not None:
                    self.link_name = long_link
                if kind == tar.REGULAR:
                    self.size = self._left = size
                    self._pad = -size % tar.BLOCK
                else:
                    self._begin_other(kind, size, bytes(chunk[position:stop]))
                if pax and any(key.startswith(b"GNU.sparse.") for key in pax):
                    self._begin_pax_sparse(pax)
            except ValueError:  # a digit that is not octal
                raise self._located(tar.invalid(f"the size of a tar header is {size_field!r}")) from None
            except InvalidArgument as error:
                raise self._located(error) from error
            self.entries += 1
            if self._most_entries is not None and self.entries > self._most_entries:
                raise InvalidArgument(
                    f"the archive has more than {self._most_entries} entries", code="archive.limit"
                )
            return True

    def take(self) -> memoryview:
        """The next piece of the entry's stored bytes, valid until the next call; empty after the last."""
        left = self._left
        if not left:
            return _EMPTY
        position = self._position
        if position >= self._end:
            if not self._refill():
                raise self._truncated("in the content")
            position = 0
        stop = min(position + left, self._end)
        self._position = stop
        self._left = left - (stop - position)
        return self._chunk[position:stop]

    def lend(self) -> tuple[memoryview, int, int, int]:
        """For who reads entries in our place: the chunk, where in it the next header is expected, where the
        chunk ends, and how many entries there may still be. Nothing, while there is content to take.
        """
        start = self._end if self._left else min(self._position + self._pad, self._end)
        most = sys.maxsize if self._most_entries is None else self._most_entries - self.entries
        return self._chunk, start, self._end, most

    def passed(self, position: int, entries: int, name: bytes) -> None:
        """Go on behind entries that were read in our place: their end in the chunk, the last one's name."""
        self._position, self._pad = position, 0
        self.entries += entries
        self.name = name

    def drain(self) -> None:
        """Read what follows the end of the archive, up to the end of the stream."""
        while self._refill():
            pass

    def _begin_other(self, kind: int, size: int, block: bytes) -> None:
        if kind == tar.REGULAR_OLD:
            kind = self.type = tar.DIRECTORY if self.name.endswith(b"/") else tar.REGULAR
        if kind in _HEADER_ONLY:
            # Link entries of old writers carry the size of the file but no data; so read all tools.
            self.size = 0
            return
        if kind not in _WITH_DATA:
            raise tar.invalid(f"entries of type {chr(kind)!r} are not supported", code="archive.unsupported")
        self.type = tar.REGULAR
        self.size = self._left = size
        self._pad = -size % tar.BLOCK
        if kind == tar.GNU_SPARSE:
            regions, self.size, more = sparse.old_gnu_regions(block)
            while more:
                if len(regions) > 2 * self._limits.sparse_regions:
                    raise tar.invalid("a sparse file has too many regions", code="archive.limit")
                more = sparse.extend_old_gnu(regions, self._block("in a sparse map"))
            self._set_regions(regions)

    def _begin_pax_sparse(self, pax: dict[bytes, bytes]) -> None:
        major, minor = pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor")
        if major is None and b"GNU.sparse.map" not in pax:
            return  # stray records, as of a file without holes
        if self.type != tar.REGULAR or self.regions is not None:
            raise tar.invalid("sparse records belong to a regular file")
        if (major, minor) == (b"1", b"0"):
            real = tar.parse_decimal(pax.get(b"GNU.sparse.realsize", b""), "GNU.sparse.realsize")
            stored_map = sparse.StoredMap(most=self._limits.sparse_regions)
            complete = False
            while not complete:
                if self._left < tar.BLOCK:
                    raise tar.invalid("a sparse map is longer than its entry")
                self._left -= tar.BLOCK
                complete = stored_map.feed(self._block("in a sparse map"))
            regions = stored_map.regions
        elif (major, minor) in ((None, None), (b"0", b"0"), (b"0", b"1")):
            real = tar.parse_decimal(
                pax.get(b"GNU.sparse.size", pax.get(b"GNU.sparse.realsize", b"")), "GNU.sparse.size"
            )
            regions = sparse.pax_regions(pax.get(b"GNU.sparse.map", b""))
        else:
            raise tar.invalid(
                f"sparse format {major!r}.{minor!r} is not supported", code="archive.unsupported"
            )
        self.name = pax.get(b"GNU.sparse.name", self.name)
        self.size = real
        self._set_regions(regions)

    def _set_regions(self, regions: sparse.Regions) -> None:
        if len(regions) > 2 * self._limits.sparse_regions:
            raise tar.invalid("a sparse file has too many regions", code="archive.limit")
        sparse.check_regions(regions, self.size, self._left)
        self.regions = regions
        self._expanded += self.size - self._left
        self._check_expanded()

    def _merge(self, pax: dict[bytes, bytes], size: int) -> int:
        """Let pax records override the header's fields; returns the size to use."""
        for key, value in pax.items():
            if key.startswith(tar.PAX_XATTR):
                name = key[len(tar.PAX_XATTR) :]
                if b"%" in name:
                    libarchive = any(other.startswith(tar.PAX_LIBARCHIVE) for other in pax)
                    name = tar.attribute_name(name, libarchive=libarchive)
                self._add_xattr(name, value)
            elif not value:
                continue  # an empty value takes an earlier record back
            elif key == b"path":
                self.name = self._text(value, "path")
            elif key == b"linkpath":
                self.link_name = self._text(value, "linkpath")
            elif key == b"size":
                size = tar.parse_decimal(value, "size")
            elif key == b"uid":
                self.uid = tar.parse_decimal(value, "uid")
            elif key == b"gid":
                self.gid = tar.parse_decimal(value, "gid")
            elif key == b"mtime":
                self.mtime = tar.parse_time(value, "mtime")
            elif key == b"atime":
                self.atime = tar.parse_time(value, "atime")
        if b"GNU.sparse.name" in pax:
            pax[b"GNU.sparse.name"] = self._text(pax[b"GNU.sparse.name"], "GNU.sparse.name")
        return size

    def _add_xattr(self, name: bytes, value: bytes) -> None:
        if self.xattrs is _NO_XATTRS:
            self.xattrs = {}
        self._text(name, "SCHILY.xattr")
        self.xattrs[name] = value
        if len(self.xattrs) > self._limits.xattrs or len(value) > self._limits.xattr_bytes:
            raise tar.invalid("too many or too large extended attributes", code="archive.limit")

    def _text(self, value: bytes, what: str) -> bytes:
        if b"\0" in value:
            raise tar.invalid(f"the pax record {what} holds a NUL byte")
        return value

    def _pax(self, content: bytes) -> dict[bytes, bytes]:
        """Records of a pax header, the last of a key winning; maps of sparse format 0.0 become 0.1's."""
        records: dict[bytes, bytes] = {}
        pairs: list[bytes] = []
        for key, value in tar.pax_records(content):
            if key == b"GNU.sparse.offset" or key == b"GNU.sparse.numbytes":
                if (key == b"GNU.sparse.offset") == bool(len(pairs) % 2):
                    raise tar.invalid("sparse offsets and lengths do not alternate")
                pairs.append(value)
            else:
                records[key] = value
        if pairs:
            records[b"GNU.sparse.map"] = b",".join(pairs)
        return records

    def _time(self, field: bytes) -> int:
        """The value of a time field, remembered."""
        times = self._times
        if len(times) >= _REMEMBERED:
            times.clear()
        if field[11] == 0 and field[:11].isdigit() and b"8" not in field and b"9" not in field:
            value = int(field[:11], 8)
        else:
            value = tar.parse_number(field, "mtime")
        times[field] = value
        return value

    def _owner(self, field: bytes) -> tuple[int, int, int]:
        """Mode, uid and gid of the 24 bytes that hold them, remembered."""
        if len(self._owners) >= _REMEMBERED:
            self._owners.clear()
        value = self._owners[field] = (
            tar.parse_number(field[:8], "mode") & 0o7777,
            tar.parse_number(field[8:16], "uid"),
            tar.parse_number(field[16:], "gid"),
        )
        return value

    def _prefix(self, position: int) -> bytes:
        block = bytes(self._chunk[position : position + tar.BLOCK])
        prefix = block[tar.PREFIX]
        # star keeps times in the last 24 bytes of the prefix and says so at the very end.
        return (prefix[:131] if block[508:] == b"tar\0" else prefix).partition(b"\0")[0]

    def _link_or_device(self, kind: int, block: bytes) -> None:
        self.link_name = block[tar.LINK_NAME].partition(b"\0")[0]
        if kind == tar.CHAR_DEVICE or kind == tar.BLOCK_DEVICE:
            self.major = tar.parse_number(block[tar.DEVICE_MAJOR], "device major")
            self.minor = tar.parse_number(block[tar.DEVICE_MINOR], "device minor")

    def _content(self, size: int, kind: int) -> bytes:
        """The whole content of an extended header."""
        if kind == tar.PAX_GLOBAL:
            self._left, self._pad = size, -size % tar.BLOCK
            return b""
        if size > self._limits.pax_bytes:
            raise tar.invalid(f"an extended header has {size} bytes", code="archive.limit")
        self._left, self._pad = size, -size % tar.BLOCK
        pieces = []
        while self._left:
            pieces.append(bytes(self.take()))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _block(self, where: str) -> bytes:
        """The next block of the archive, which belongs to the headers of this entry."""
        if self._position >= self._end and not self._refill():
            raise self._truncated(where)
        stop = self._position + tar.BLOCK
        if stop > self._end:
            raise self._truncated(where)
        block = bytes(self._chunk[self._position : stop])
        self._position = stop
        return block

    def _skip(self) -> None:
        while self._left:
            self.take()

    def _refill(self) -> bool:
        self._start += self._end
        self._position = self._end = 0
        self._chunk = self._source()
        self._end = len(self._chunk)
        if self._limits.expanded_bytes is not None:
            self._check_expanded()
        return self._end > 0

    def _check_expanded(self) -> None:
        most = self._limits.expanded_bytes
        if most is not None and self._start + self._end + self._expanded > most:
            where = f", at entry {tar.printable(self.name)}" if self.name else ""
            raise OutOfSpace(f"the archive expands to more than {most} bytes{where}", code="archive.limit")

    def _finished(self, *extended: object) -> bool:
        if any(header is not None for header in extended):
            raise self._truncated("after an extended header")
        return False

    def _at_zero_block(self, stop: int) -> bool:
        """Whether the archive ends here: two zero blocks, or one and nothing behind it."""
        self._position = stop
        if self._position >= self._end and not self._refill():
            return True
        following = bytes(self._chunk[self._position : self._position + tar.BLOCK])
        if following.strip(b"\0"):
            raise tar.invalid(f"a single zero block at byte {self.offset - tar.BLOCK} of the archive")
        self._position += len(following)
        return True

    def _verify(self, block: bytes, total: int) -> None:
        """Check a header's checksum, and remember how it is written; ``total`` is that of :meth:`advance`."""
        field = block[tar.CHECKSUM]
        try:
            stored = tar.parse_number(field, "checksum")
        except InvalidArgument:
            stored = -1
        if stored == tar.checksum(block):
            if len(self._checks) >= _REMEMBERED:
                self._checks.clear()
            self._checks[field] = total
        elif stored != tar.signed_checksum(block):
            after = f", after entry {tar.printable(self.name)}" if self.entries else ""
            raise tar.invalid(
                f"no tar header, or a damaged one, at byte {self.offset} of the archive{after}",
                code="archive.checksum",
            )

    def _truncated(self, where: str) -> InvalidArgument:
        entry = f" of entry {tar.printable(self.name)}" if self.name else ""
        return tar.invalid(
            f"the archive ends {where}{entry}, at byte {self._start + self._end}", code="archive.truncated"
        )

    def _located(self, error: InvalidArgument) -> InvalidArgument:
        if error.code == "archive.truncated":
            return error
        return tar.invalid(f"{error.message}: entry {tar.printable(self.name)}", code=error.code)
