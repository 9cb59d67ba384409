"""Streams that prove what they carry, and documents that are what they claim."""

from __future__ import annotations

import hashlib
import io

import pytest

from layerlimit.archive.image import CheckedStream, decode, diff_ids, split_digest
from layerlimit.errors import InvalidArgument, NotSupported
from tests.archive.images import configuration, sha256

DATA = bytes(range(256)) * 5000


class Raw(io.RawIOBase):
    """A stream of bytes, like a file without a buffer."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        count = min(len(buffer), len(self._data), 1000)
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


@pytest.mark.parametrize("digest", [sha256(DATA), f"sha512:{hashlib.sha512(DATA).hexdigest()}", ""])
def test_right_bytes_pass(digest: str) -> None:
    with CheckedStream(Raw(DATA), "layer", size=len(DATA), digest=digest) as stream:
        assert stream.read() == DATA
        assert stream.read() == b""


@pytest.mark.parametrize(
    ("data", "digest", "why"),
    [
        (DATA[:-1], sha256(DATA), "layer is 1 bytes short"),
        (DATA[:-1] + b"x", sha256(DATA), "layer is damaged"),
        (DATA[:-1], "", "1 bytes short"),
        (b"", sha256(DATA), "bytes short"),
    ],
)
def test_wrong_bytes_fail_at_their_end(data: bytes, digest: str, why: str) -> None:
    with CheckedStream(Raw(data), "layer", size=len(DATA), digest=digest) as stream:
        with pytest.raises(InvalidArgument, match=why) as caught:
            stream.read()
    assert caught.value.code == "image.digest"


def test_no_byte_beyond_the_size_is_read() -> None:
    with CheckedStream(Raw(DATA + b"more"), "layer", size=len(DATA), digest=sha256(DATA)) as stream:
        assert stream.read() == DATA


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "sha256:" + "a" * 63,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 64 + "\n",
        "md5:" + "a" * 32,
        "../sha256:" + "a" * 64,
        "sha512:" + "a" * 64,
    ],
)
def test_what_is_no_digest(digest: str) -> None:
    with pytest.raises(InvalidArgument, match="digest"):
        split_digest(digest)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'{"a": "x"}', b"\xff", b"[" * 100_000, b'{"x":' * 100_000]
)
def test_what_is_no_document(raw: bytes) -> None:
    with pytest.raises(InvalidArgument, match="thing is not valid"):
        decode(raw, dict[str, int], "thing")


def test_diff_ids() -> None:
    layers = [b"one", b"two"]
    assert diff_ids(configuration(layers), "config", 2) == [sha256(b"one"), sha256(b"two")]
    with pytest.raises(InvalidArgument, match="2 diff IDs for 3 layers"):
        diff_ids(configuration(layers), "config", 3)
    with pytest.raises(NotSupported, match="windows"):
        diff_ids(configuration(layers, os="windows"), "config", 2)
    with pytest.raises(InvalidArgument, match="at most 500"):
        diff_ids(configuration([b""] * 501), "config", 501)
    other = {"type": "layers", "diff_ids": ["sha512:" + "0" * 128]}
    with pytest.raises(NotSupported, match="sha256"):
        diff_ids(configuration([], rootfs=other), "config", 1)
