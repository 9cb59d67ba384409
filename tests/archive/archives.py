"""Tar archives made byte by byte, the broken and hostile ones above all, without the code under test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

END = bytes(1024)
MTIME = 1_600_000_000


def octal(value: int, width: int) -> bytes:
    """A number field; what octal digits cannot say is GNU's base-256."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return (
        (value % 256**width | 0x80 << 8 * (width - 1)).to_bytes(width, "big")
        if value >= 0
        else ((1 << 8 * width) + value).to_bytes(width, "big")
    )


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = MTIME,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
) -> bytes:
    """One header block with a right checksum."""
    block = bytearray(512)
    for offset, field in (
        (0, name[:100]),
        (100, octal(mode, 8)),
        (108, octal(uid, 8)),
        (116, octal(gid, 8)),
        (124, octal(size, 12)),
        (136, octal(mtime, 12)),
        (156, kind),
        (157, link[:100]),
        (257, magic),
        (329, octal(major, 8)),
        (337, octal(minor, 8)),
        (345, prefix),
    ):
        block[offset : offset + len(field)] = field
    return seal(block)


def seal(block: bytes | bytearray) -> bytes:
    """``block`` with its checksum."""
    sealed = bytearray(block)
    sealed[148:156] = b" " * 8
    sealed[148:156] = b"%06o\0 " % sum(sealed)
    return bytes(sealed)


def padded(data: bytes) -> bytes:
    """``data`` up to a whole number of blocks."""
    return data + bytes(-len(data) % 512)


def records(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The content of a pax header."""
    out = b""
    for key, value in pairs:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while length != len(rest) + len(b"%d" % length):
            length += 1
        out += b"%d" % length + rest
    return out


def pax(pairs: Iterable[tuple[bytes, bytes]], *, kind: bytes = b"x") -> bytes:
    """A pax header with its content."""
    content = records(pairs)
    return header(b"PaxHeader", kind=kind, size=len(content)) + padded(content)


def entry(
    name: bytes,
    data: bytes = b"",
    *,
    kind: bytes = b"0",
    extended: Mapping[bytes, bytes] | None = None,
    link: bytes = b"",
    size: int | None = None,
    **fields: Any,
) -> bytes:
    """An entry, with a pax header for what the plain one has no room for."""
    more = dict(extended or {})
    if len(name) > 100:
        more.setdefault(b"path", name)
    if len(link) > 100:
        more.setdefault(b"linkpath", link)
    front = pax(more.items()) if more else b""
    plain = header(
        name,
        kind=kind,
        link=link,
        size=len(data) if size is None else size,
        **fields,
    )
    return front + plain + padded(data)


def file(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    return entry(name, data, **fields)


def folder(name: bytes, *, mode: int = 0o755, **fields: Any) -> bytes:
    return entry(name + b"/", kind=b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return entry(name, kind=b"2", link=target, **fields)


def hardlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return entry(name, kind=b"1", link=target, **fields)


def device(name: bytes, major: int, minor: int, *, kind: bytes = b"3", **fields: Any) -> bytes:
    return entry(name, kind=kind, major=major, minor=minor, **fields)


def archive(*entries: bytes) -> bytes:
    """A whole archive."""
    return b"".join(entries) + END
