"""Compressed layers, told by their first bytes and inflated in this process.

No program is run: one found on PATH could be one that a layer brought along (CVE-2014-9357,
CVE-2026-41567), and names and media types lie.
"""

from __future__ import annotations

import bz2
import enum
import lzma
import sys
from collections.abc import Callable
from typing import Protocol

from isal import igzip_lib

from layerlimit.archive.limits import MIB, Limits
from layerlimit.archive.tarformat import invalid
from layerlimit.errors import OutOfSpace

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: What an xz stream may ask for as its dictionary; level 9 needs 65 MiB.
XZ_MEMORY = 256 * MIB
#: Bytes that :func:`detect` needs to be sure.
MAGIC_BYTES = 8


class Compression(enum.Enum):
    """How a layer is compressed."""

    NONE = "none"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"


class _Decompressor(Protocol):
    """What bz2, lzma, zstd and igzip_lib have in common: one member or frame, output in bounded pieces."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes | memoryview, max_length: int = ..., /) -> bytes: ...


def detect(head: bytes) -> Compression:
    """The compression of a stream that starts with ``head`` (at least :data:`MAGIC_BYTES`, or all of it)."""
    if head[:3] == b"\x1f\x8b\x08":
        return Compression.GZIP
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return Compression.ZSTD
    if len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return Compression.ZSTD  # a skippable frame in front
    if head[:3] == b"BZh":
        return Compression.BZIP2
    if head[:6] == b"\xfd7zXZ\0":
        return Compression.XZ
    return Compression.NONE


def _gzip() -> _Decompressor:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


_DECOMPRESSORS: dict[Compression, Callable[[], _Decompressor]] = {
    Compression.GZIP: _gzip,
    Compression.BZIP2: bz2.BZ2Decompressor,
    Compression.XZ: _xz,
    Compression.ZSTD: zstd.ZstdDecompressor,
}
# The stubs of isal say that this class is an instance. bz2 reports damage as OSError and ValueError.
_ISAL_ERROR: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
_DAMAGE = (EOFError, OSError, ValueError, _ISAL_ERROR, lzma.LZMAError, zstd.ZstdError)


class Inflater:
    """The uncompressed bytes of a stream of members or frames, and of zero padding after them.

    ``source`` returns the next compressed piece, an empty one at the end. Damage and truncation raise
    ``InvalidArgument`` (codes ``archive.damaged``, ``archive.truncated``), a ratio above the limits
    ``OutOfSpace`` (``archive.limit``).
    """

    def __init__(
        self, compression: Compression, source: Callable[[], memoryview], *, limits: Limits | None = None
    ) -> None:
        self._compression = compression
        self._source = source
        self._limits = limits or Limits()
        self._member: _Decompressor | None = None
        self._rest: bytes | memoryview = b""  # input behind the end of a member
        self.consumed = 0
        self.produced = 0

    def fill(self, buffer: memoryview) -> int:
        """Fill ``buffer``; fewer bytes than it holds, or none, mean that the stream has ended."""
        filled, size = 0, len(buffer)
        while filled < size:
            if self._member is None and not self._next_member():
                break
            assert self._member is not None
            piece: bytes | memoryview = b""
            if self._rest:
                piece, self._rest = self._rest, b""
            elif self._member.needs_input:
                piece = self._pull()
                if not piece:
                    raise invalid(
                        f"the {self._compression.value} stream ends in the middle, at byte {self.consumed}",
                        code="archive.truncated",
                    )
            try:
                output = self._member.decompress(piece, size - filled)
            except _DAMAGE as error:
                raise invalid(
                    f"the {self._compression.value} stream is damaged: {error}", code="archive.damaged"
                ) from error
            buffer[filled : filled + len(output)] = output
            filled += len(output)
            if self._member.eof:
                self._rest = self._member.unused_data
                self._member = None
        self.produced += filled
        self._check_ratio()
        return filled

    def _next_member(self) -> bool:
        """Start the next member; False where nothing but padding is left."""
        while True:
            piece = self._rest or self._pull()
            if not piece:
                return False
            if piece[0] == 0:
                piece = bytes(piece).lstrip(b"\0")
            self._rest = piece
            if piece:
                self._member = _DECOMPRESSORS[self._compression]()
                return True

    def _pull(self) -> memoryview:
        piece = self._source()
        self.consumed += len(piece)
        return piece

    def _check_ratio(self) -> None:
        ratio = self._limits.ratio
        if ratio is None or self.produced < self._limits.ratio_floor:
            return
        if self.produced > ratio * self.consumed:
            raise OutOfSpace(
                f"the {self._compression.value} stream expands to more than {ratio} times its size",
                code="archive.limit",
            )
