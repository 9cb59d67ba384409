"""Compressing a layer tar: gzip and zstd, by libraries in this process."""

from __future__ import annotations

import sys
import zlib
from typing import Literal, Protocol, cast

from isal import isal_zlib

from layerlimit.errors import InvalidArgument

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compression = Literal["gzip", "zstd"]

_ISAL_LEVELS = range(4)
_GZIP_LEVELS = range(10)
_GZIP_WINDOW = 31  # a 32 KiB window with a gzip header and trailer


class Encoder(Protocol):
    """A compressor of one stream. Both calls release the GIL while they work."""

    def compress(self, data: memoryview, /) -> bytes:
        """Takes ``data`` and returns what is ready, possibly nothing."""

    def flush(self) -> bytes:
        """Ends the stream and returns the rest."""


def encoder(compression: Compression, level: int | None) -> Encoder:
    """A compressor whose output depends on the input, the level and the library only.

    gzip takes levels 0–9: 0–3 are ISA-L's (several times as fast as zlib, some 10 % larger; default
    2), 4–9 are zlib's. The gzip header holds no name and no time. zstd takes its own levels (default 3)
    and ends the frame with a checksum. Raises InvalidArgument for an unknown name or level.
    """
    if compression == "gzip":
        chosen = 2 if level is None else level
        if chosen not in _GZIP_LEVELS:
            raise InvalidArgument(f"gzip has no level {chosen}", hint="0 to 9")
        if chosen in _ISAL_LEVELS:
            return cast(Encoder, isal_zlib.compressobj(chosen, wbits=_GZIP_WINDOW))
        return cast(Encoder, zlib.compressobj(chosen, wbits=_GZIP_WINDOW))
    if compression == "zstd":
        low, high = zstd.CompressionParameter.compression_level.bounds()
        chosen = 3 if level is None else level
        if not low <= chosen <= high or chosen == 0:  # 0 would mean "the default" to the library
            raise InvalidArgument(f"zstd has no level {chosen}", hint=f"{low} to {high}, not 0")
        return zstd.ZstdCompressor(
            options={
                zstd.CompressionParameter.compression_level: chosen,
                zstd.CompressionParameter.checksum_flag: 1,
            }
        )
    raise InvalidArgument(f"unknown compression {compression!r}", hint="gzip, zstd or none")
