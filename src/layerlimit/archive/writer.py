"""The bytes of a layer tar's headers: ustar, with a pax header in front only where ustar cannot say it.

The rules are those of Go's ``archive/tar`` in PAX format, which every engine writes: numeric owners
only, octal numbers, ``path``/``linkpath``/``size``/``uid``/``gid``/``mtime`` records for what does not
fit or is not ASCII, and ``SCHILY.xattr.<name>`` for extended attributes. One thing is done as POSIX
would rather than as Go does: an ASCII name of more than 100 bytes goes into ustar's prefix field when
it can be cut at a slash, which saves two blocks for most entries of a deep tree.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from zlib import adler32

from layerlimit.archive.tarformat import (
    BLOCK,
    MAX_OCTAL_7,
    MAX_OCTAL_11,
    PAX_HEADER,
    PAX_XATTR,
    REGULAR,
    pax_record,
)
from layerlimit.errors import NotSupported

#: What ends an archive.
END = bytes(2 * BLOCK)
#: Readers keep a pax header in memory and bound it: Go's archive/tar at 1 MiB.
MAX_PAX = 1 << 20

_SECOND = 1_000_000_000
_PADDING = [bytes(-size % BLOCK) for size in range(BLOCK)]
_BEFORE_DEVICE = b"ustar\x0000" + bytes(64)  # magic, version, empty user and group names
_NO_DEVICE = b"0000000\x00" * 2
_NO_LINK = bytes(100)
_FILE_TAIL = b"0" + _NO_LINK + _BEFORE_DEVICE + _NO_DEVICE + bytes(155 + 12)
_FILE_TAIL_SUM = sum(_FILE_TAIL) + 8 * 0x20 - 1
_NAMES = (b"path", b"linkpath", b"GNU.sparse.name")


def padding(size: int) -> bytes:
    """The zero bytes that follow ``size`` bytes of data up to the next block."""
    return _PADDING[size % BLOCK]


def file_header(name: bytes, owner: bytes, size: int, seconds: int) -> bytes | None:
    """The header block of a regular file that needs nothing out of the ordinary; None when it does.

    ``owner`` is what :func:`owner_fields` gives. Nearly every entry of a layer is such a file, and the speed
    of small files depends on this function.
    """
    if len(name) > 100 or not name.isascii() or not owner or not 0 <= seconds <= MAX_OCTAL_11:
        return None
    head = b"%b%b%011o\x00%011o\x00" % (name.ljust(100, b"\x00"), owner, size, seconds)
    # As in _checksum, what is constant added once and for all.
    checksum = (adler32(head) & 0xFFFF) + _FILE_TAIL_SUM
    return b"%b%06o\x00 %b" % (head, checksum, _FILE_TAIL)


@functools.lru_cache(maxsize=1024)
def owner_fields(mode: int, uid: int, gid: int) -> bytes:
    """The mode, user and group fields of a header; empty when they do not fit."""
    if uid > MAX_OCTAL_7 or gid > MAX_OCTAL_7:
        return b""
    return b"%07o\x00%07o\x00%07o\x00" % (mode, uid, gid)


def header(
    name: bytes,
    kind: int,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_ns: int,
    link: bytes = b"",
    device: tuple[int, int] | None = None,
    records: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The header blocks of one entry.

    ``kind`` is a type flag of :mod:`tarformat`; ``size`` is the number of data bytes that follow;
    ``mtime_ns`` counts from 1970 and is written to the nanosecond, so a caller who wants whole seconds
    rounds it; ``device`` is (major, minor); ``records`` are extra pax records. Raises NotSupported when
    the pax header would exceed what readers accept.
    """
    seconds, fraction = divmod(mtime_ns, _SECOND)
    pax = dict(records or ())
    if uid > MAX_OCTAL_7:
        pax[b"uid"], uid = b"%d" % uid, 0
    if gid > MAX_OCTAL_7:
        pax[b"gid"], gid = b"%d" % gid, 0
    if size > MAX_OCTAL_11:
        pax[b"size"], size = b"%d" % size, 0
    if fraction or not 0 <= seconds <= MAX_OCTAL_11:
        pax[b"mtime"] = _time(mtime_ns)
        seconds = seconds if 0 <= seconds <= MAX_OCTAL_11 else 0
    prefix, short = b"", name
    if b"GNU.sparse.name" not in pax:
        prefix, short = _split(name)
        if not short:
            pax[b"path"], short = name, name
    if len(link) > 100 or not link.isascii():
        pax[b"linkpath"] = link
    if not all(_is_utf8(pax.get(key, b"")) for key in _NAMES):
        # POSIX has names in pax records as UTF-8; this says that they are bytes (libarchive heeds it).
        pax[b"hdrcharset"] = b"BINARY"
    main = _block(_field(short), kind, mode, uid, gid, size, seconds, _field(link), device, prefix)
    return _pax_blocks(name, pax) + main if pax else main


def sparse_header(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_ns: int,
    segments: Sequence[tuple[int, int]],
    records: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The header blocks and the map of a sparse file in GNU's "PAX 1.0" form.

    ``segments`` are the (offset, length) pairs that hold data, ascending; their bytes follow one after
    the other, padded to a block at the end only. Source: GNU tar manual, "Storing Sparse Files".
    """
    listed = list(segments)
    if not listed or sum(listed[-1]) < size:
        listed.append((size, 0))  # as GNU tar does: it tells where a last hole ends
    table = b"%d\n" % len(listed) + b"".join(b"%d\n%d\n" % pair for pair in listed)
    table += padding(len(table))
    directory, slash, base = name.rpartition(b"/")
    pax = dict(records or ())
    pax[b"GNU.sparse.major"] = b"1"
    pax[b"GNU.sparse.minor"] = b"0"
    pax[b"GNU.sparse.name"] = name
    pax[b"GNU.sparse.realsize"] = b"%d" % size
    stored = len(table) + sum(length for _, length in segments)
    shown = b"%b%bGNUSparseFile.0/%b" % (directory, slash, base)
    return header(shown, REGULAR, mode, uid, gid, stored, mtime_ns, records=pax) + table


def attribute_key(name: bytes) -> bytes:
    """The pax key of the extended attribute ``name``.

    A pax key ends at the first "=". GNU tar writes that as "%3D" and undoes "%3D" and "%25" when
    reading, so such names are written to come back; others are not, as other readers take a key as it stands.
    """
    if b"=" in name or b"%3D" in name or b"%25" in name:
        name = name.replace(b"%", b"%25").replace(b"=", b"%3D")
    return PAX_XATTR + name


def display(path: bytes) -> str:
    """``path`` for a message: what is not text is shown as backslash escapes."""
    return path.decode("utf-8", "backslashreplace")


def _checksum(head: bytes, kind: int, tail: bytes) -> int:
    # The sum of all bytes with the checksum field itself as spaces. Adler-32's lower half is that sum
    # plus one, modulo 65521; every byte of our headers is ASCII, so 504 of them stay below it.
    return (adler32(b"%b%c%b" % (head, kind, tail)) & 0xFFFF) - 1 + 8 * 0x20


def _block(
    name: bytes,
    kind: int,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes,
    device: tuple[int, int] | None,
    prefix: bytes,
) -> bytes:
    head = b"%b%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00" % (name, mode, uid, gid, size, seconds)
    numbers = b"%07o\x00%07o\x00" % device if device else _NO_DEVICE
    tail = b"%b%b%b%b%b" % (link, _BEFORE_DEVICE, numbers, prefix.ljust(155, b"\x00"), bytes(12))
    return b"%b%06o\x00 %c%b" % (head, _checksum(head, kind, tail), kind, tail)


def _field(name: bytes) -> bytes:
    """``name`` as far as ustar's 100 bytes can say it: ASCII only and cut."""
    if not name.isascii():
        # Go leaves these bytes out, but libarchive takes a symlink for a file when its target field is empty.
        name = bytes(byte if byte < 0x80 else 0x5F for byte in name)
    if len(name) > 100:
        # A slash at the cut would make old readers take the entry for a directory.
        name = name[:100].rstrip(b"/")
    return name.ljust(100, b"\x00")


def _split(name: bytes) -> tuple[bytes, bytes]:
    """``name`` as ustar's (prefix, name), or (b"", b"") when ustar cannot hold it."""
    if not name.isascii():
        return b"", b""
    if len(name) <= 100:
        return b"", name
    # The first slash that leaves at most 100 bytes; a directory's own trailing slash is not one.
    cut = name.find(b"/", len(name) - 101, len(name) - 1)
    if not 1 <= cut <= 155:
        return b"", b""
    return name[:cut], name[cut + 1 :]


def _pax_blocks(name: bytes, pax: Mapping[bytes, bytes]) -> bytes:
    body = b"".join(pax_record(key, pax[key]) for key in sorted(pax))
    if len(body) > MAX_PAX:
        raise NotSupported(
            f"cannot export {display(name)}: its extended attributes need a header of {len(body)} bytes",
            hint=f"readers of layer tars accept {MAX_PAX}; remove some of the attributes",
            code="archive.header_too_large",
        )
    directory, slash, base = name.rstrip(b"/").rpartition(b"/")
    label = _field(b"%b%bPaxHeaders.0/%b" % (directory, slash, base))
    return _block(label, PAX_HEADER, 0, 0, 0, len(body), 0, _NO_LINK, None, b"") + body + padding(len(body))


def _time(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(abs(nanoseconds), _SECOND)
    text = b"%d.%09d" % (seconds, fraction)
    return (b"-" if nanoseconds < 0 else b"") + text.rstrip(b"0").rstrip(b".")


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
