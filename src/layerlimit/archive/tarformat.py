"""The tar format, byte for byte: constants, number fields, checksums and pax records.

Sources: POSIX.1-2017 pax ("ustar Interchange Format", "pax Header Block"), GNU tar's manual ("Basic Tar
Format", "Storing Sparse Files"), and star's SCHILY keywords. Everything here is bytes; names are never
decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from zlib import adler32

from layerlimit.errors import InvalidArgument

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

# Type flags, as the integer of the byte at offset 156.
REGULAR = ord("0")
REGULAR_OLD = 0  # pre-POSIX; a directory when the name ends in "/"
HARD_LINK = ord("1")
SYMLINK = ord("2")
CHAR_DEVICE = ord("3")
BLOCK_DEVICE = ord("4")
DIRECTORY = ord("5")
FIFO = ord("6")
CONTIGUOUS = ord("7")
PAX_HEADER = ord("x")
PAX_GLOBAL = ord("g")
GNU_LONG_NAME = ord("L")
GNU_LONG_LINK = ord("K")
GNU_SPARSE = ord("S")

# Offsets and lengths of header fields.
NAME = slice(0, 100)
MODE = slice(100, 108)
UID = slice(108, 116)
GID = slice(116, 124)
SIZE = slice(124, 136)
MTIME = slice(136, 148)
CHECKSUM = slice(148, 156)
TYPE = 156
LINK_NAME = slice(157, 257)
MAGIC = slice(257, 263)
VERSION = slice(263, 265)
USER_NAME = slice(265, 297)
GROUP_NAME = slice(297, 329)
DEVICE_MAJOR = slice(329, 337)
DEVICE_MINOR = slice(337, 345)
PREFIX = slice(345, 500)

MAGIC_POSIX = b"ustar\0"
VERSION_POSIX = b"00"
MAGIC_GNU = b"ustar "
VERSION_GNU = b" \0"

PAX_XATTR = b"SCHILY.xattr."
#: libarchive writes these records beside SCHILY's.
PAX_LIBARCHIVE = b"LIBARCHIVE.xattr."
#: The largest values a field holds in octal, and a file's size or position in the kernel.
MAX_OCTAL_7 = 0o7777777
MAX_OCTAL_11 = 0o77777777777
MAX_OFFSET = 2**63 - 1

_OCTAL = re.compile(rb"[ \0]*([0-7]+)[ \0]*\Z")
_GNU_ESCAPE = re.compile(rb"%(3D|25)")
_ANY_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_DECIMAL_TIME = re.compile(rb"(-?)([0-9]{1,24})(?:\.([0-9]*))?\Z")


def invalid(message: str, *, code: str = "archive.invalid") -> InvalidArgument:
    """The error for an archive that breaks its format."""
    return InvalidArgument(message, code=code)


def printable(name: bytes) -> str:
    """``name`` quoted for a message: any bytes, no control characters, never more than a line."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}")


def parse_number(field: bytes, what: str) -> int:
    """The value of a numeric header field: octal digits, or GNU's base-256 form (may be negative).

    A blank field is 0. Anything else that is not a number raises ``InvalidArgument``.
    """
    if field and field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        # 0x80 marks a positive number, 0xff a negative one in two's complement.
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    match = _OCTAL.match(field)
    if match:
        return int(match[1], 8)
    if not field.strip(b" \0"):
        return 0
    # Fields end at the first NUL; what follows is padding that some writers leave dirty.
    head, nul, _ = field.lstrip(b" ").partition(b"\0")
    match = _OCTAL.match(head) if nul and head else None
    if not match:
        raise invalid(f"the {what} field of a tar header is not a number: {field!r}")
    return int(match[1], 8)


def format_octal(value: int, width: int) -> bytes:
    """``value`` as a NUL-terminated octal field of ``width`` bytes; the caller sees to it that it fits."""
    return b"%0*o\0" % (width - 1, value)


def checksum(block: bytes) -> int:
    """Sum of the 512 bytes of a header, its checksum field counted as spaces."""
    # adler32's low half is 1 + the sum of bytes modulo 65521; 256 bytes sum to 65280 at most, so the
    # two halves are exact, and an order of magnitude faster than sum().
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    return total - sum(block[CHECKSUM]) + 256


def signed_checksum(block: bytes) -> int:
    """The sum with bytes taken as signed, as some historic writers had it."""
    high = sum(1 for byte in block[:148] + block[156:] if byte & 0x80)
    return checksum(block) - 256 * high


def parse_time(text: bytes, what: str) -> int:
    """Nanoseconds since 1970 of a pax time ("1700000000.25", may be negative); finer digits are cut."""
    match = _DECIMAL_TIME.match(text)
    if not match:
        raise invalid(f"the pax record {what} is not a time: {text[:64]!r}")
    nanoseconds = int(match[2]) * 1_000_000_000 + int((match[3] or b"").ljust(9, b"0")[:9])
    return -nanoseconds if match[1] else nanoseconds


def parse_decimal(text: bytes, what: str) -> int:
    """A non-negative decimal of a pax record, at most 2**63 - 1."""
    if not text.isdigit() or len(text) > 19 or int(text) > MAX_OFFSET:
        raise invalid(f"the pax record {what} is not a number in range: {text[:64]!r}")
    return int(text)


def pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) records of a pax header in order; the values may hold any byte.

    Raises ``InvalidArgument`` at the first malformed record.
    """
    position, end = 0, len(data)
    while position < end:
        # GNU tar pads with NULs after the last record in some versions.
        if data[position] == 0 and not data[position:].strip(b"\0"):
            return
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > position else b""
        length = int(digits) if digits.isdigit() else 0
        stop = position + length
        if length <= len(digits) + 2 or stop > end or data[stop - 1] != 0x0A:
            raise invalid(f"malformed pax record at byte {position} of a pax header")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key:
            raise invalid(f"pax record without a key at byte {position} of a pax header")
        yield key, value
        position = stop


def attribute_name(escaped: bytes, *, libarchive: bool) -> bytes:
    """The name of the extended attribute in the key of a SCHILY record.

    A pax key ends at the first "=". GNU tar writes "=" and "%" as %3D and %25 and undoes these two only,
    which suits Go's writer too, which escapes nothing. libarchive escapes what is not ASCII as well.
    """
    escape = _ANY_ESCAPE if libarchive else _GNU_ESCAPE
    return escape.sub(lambda match: bytes([int(match[1], 16)]), escaped)


def pax_record(key: bytes, value: bytes) -> bytes:
    """One pax record; its leading length counts itself."""
    body = len(key) + len(value) + 3  # space, "=", newline
    length = body + len(str(body))
    length = body + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
