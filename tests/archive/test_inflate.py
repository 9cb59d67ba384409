"""Compressed streams are told by their content; damage, truncation and bombs are errors."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from layerlimit.archive import Limits
from layerlimit.archive.inflate import Compression, detect
from layerlimit.archive.pipeline import CHUNK, Readable, Source
from layerlimit.errors import Error, InvalidArgument, OutOfSpace

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.NONE: bytes,
    Compression.GZIP: gzip.compress,
    Compression.BZIP2: lambda data: bz2.compress(data, 1),
    Compression.XZ: lambda data: lzma.compress(data, preset=0),
    Compression.ZSTD: zstd.compress,
}
COMPRESSED = [each for each in Compression if each is not Compression.NONE]
# Small enough for no threads, for one chunk and for many; incompressible, so that the raw side is as long.
SIZES = [0, 1, 512, 300_000, CHUNK, 3 * CHUNK + 17, 9 * CHUNK]


def read(stream: Readable, limits: Limits | None = None) -> tuple[bytes, str, Compression]:
    """All of a stream, its digest, and what it was compressed with."""
    with Source(stream, limits=limits) as source:
        parts = []
        while chunk := source.chunk():
            parts.append(bytes(chunk))
        assert not source.chunk()
        assert all(len(part) % 512 == 0 for part in parts[:-1])
        return b"".join(parts), source.digest(), source.compression


def failure(data: bytes, limits: Limits | None = None) -> Error:
    with pytest.raises(Error) as raised:
        read(io.BytesIO(data), limits)
    return raised.value


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("compression", Compression)
def test_all_of_it_comes_out(compression: Compression, size: int) -> None:
    data = b"t" + os.urandom(size) if size else b""
    got, digest, told = read(io.BytesIO(COMPRESS[compression](data)))
    assert got == data
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert told is compression or (compression is Compression.NONE)


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz", "zstd"])
def test_what_programs_write(program: str) -> None:
    data = os.urandom(1000) * 1000
    packed = subprocess.run([program, "-c"], input=data, capture_output=True, check=True).stdout
    assert read(io.BytesIO(packed))[0] == data


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize("compression", COMPRESSED)
def test_members_and_padding(compression: Compression, size: int) -> None:
    one, two = os.urandom(size), os.urandom(size)
    pack = COMPRESS[compression]
    assert read(io.BytesIO(pack(one) + pack(b"") + pack(two)))[0] == one + two
    assert read(io.BytesIO(pack(one) + bytes(10_000)))[0] == one


def test_skippable_frames() -> None:
    skippable = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    packed = skippable + zstd.compress(b"one") + skippable + zstd.compress(b"two") + skippable
    assert read(io.BytesIO(packed)) == (b"onetwo", read(io.BytesIO(b"onetwo"))[1], Compression.ZSTD)


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize("compression", COMPRESSED)
def test_truncation(compression: Compression, size: int) -> None:
    packed = COMPRESS[compression](os.urandom(size))
    for cut in (len(packed) - 1, len(packed) - 5, len(packed) // 2, 9):
        error = failure(packed[:cut])
        assert isinstance(error, InvalidArgument)
        assert error.code in ("archive.truncated", "archive.damaged")


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize("compression", [each for each in COMPRESSED if each is not Compression.ZSTD])
def test_damage(compression: Compression, size: int) -> None:
    packed = bytearray(COMPRESS[compression](os.urandom(size)))
    at = len(packed) // 2 if compression is Compression.XZ else len(packed) - 6
    packed[at] ^= 0xFF
    assert failure(bytes(packed)).code == "archive.damaged"


def test_damage_of_zstd_with_its_checksum() -> None:
    options = {int(zstd.CompressionParameter.checksum_flag): 1}
    packed = bytearray(zstd.compress(os.urandom(1000), options=options))
    packed[-2] ^= 0xFF
    assert failure(bytes(packed)).code == "archive.damaged"


@pytest.mark.parametrize("compression", COMPRESSED)
def test_garbage_after_the_end(compression: Compression) -> None:
    assert failure(COMPRESS[compression](b"data") + b"garbage, and enough of it").code in (
        "archive.damaged",
        "archive.truncated",
    )


@pytest.mark.parametrize("compression", [Compression.XZ, Compression.ZSTD, Compression.BZIP2])
def test_ratio(compression: Compression) -> None:
    bomb = COMPRESS[compression](bytes(16 << 20))
    limits = Limits(ratio=1000, ratio_floor=1 << 20)
    error = failure(bomb, limits)
    assert isinstance(error, OutOfSpace)
    assert error.code == "archive.limit"
    assert len(read(io.BytesIO(bomb), Limits(ratio=None))[0]) == 16 << 20


def test_xz_memory_is_bounded() -> None:
    packed = bytearray(lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}]))
    assert read(io.BytesIO(packed))[0] == b"x"
    # The block header follows the 12 bytes of the stream header: size, flags, filter, size of its properties,
    # and the dictionary's size as 2 ** (n / 2 + 12).
    assert packed[16] == 28
    packed[16] = 36
    packed[20:24] = zlib.crc32(packed[12:20]).to_bytes(4, "little")
    assert "memory" in failure(bytes(packed)).message.lower()


@pytest.mark.parametrize(
    "head", [b"", b"\x1f", b"\x1f\x8b\x07", b"BZ", b"\xfd7zXZ", b"\x28\xb5\x2f", b"\x60\x2a\x4d\x18aaaa"]
)
def test_what_is_not_compressed(head: bytes) -> None:
    assert detect(head) is Compression.NONE


class Failing(io.RawIOBase):
    """A stream whose disk dies."""

    def __init__(self, good: int) -> None:
        self.good = good

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        if self.good <= 0:
            raise OSError(5, "Input/output error")
        self.good -= len(buffer)
        return len(buffer)


@pytest.mark.parametrize("good", [0, 5 * CHUNK])
def test_error_of_the_stream(good: int) -> None:
    with pytest.raises(Error, match="read the layer archive: Input/output error"):
        read(Failing(good))


def test_streams_that_only_read() -> None:
    class Reading:
        def __init__(self) -> None:
            self.data = io.BytesIO(b"x" * 5 * CHUNK)

        def read(self, size: int, /) -> bytes:
            return self.data.read(min(size, 1000))

    assert len(read(Reading())[0]) == 5 * CHUNK


def test_a_consumer_that_gives_up_leaves_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(os.urandom(20 * CHUNK), 1))
    before = threading.active_count()
    with path.open("rb") as stream:
        with pytest.raises(ZeroDivisionError), Source(stream) as source:
            _ = len(source.chunk()) / 0
    assert threading.active_count() == before


def test_a_consumer_that_gives_up_does_not_wait_for_the_stream() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as stream, open(writing, "wb", buffering=0) as feed:
        threading.Thread(target=feed.write, args=(b"x" * 300_000,)).start()
        with pytest.raises(ZeroDivisionError), Source(stream) as source:
            _ = len(source.chunk()) / 0  # while a thread waits for more, which never comes
        feed.close()
        _wait_for_threads()


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("layer-"):
            thread.join(timeout=10)
            assert not thread.is_alive()
