"""Headers byte by byte, with the standard library and GNU tar as readers."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from layerlimit.archive import tarformat
from layerlimit.archive.writer import END, MAX_PAX, attribute_key, header, padding, sparse_header
from layerlimit.errors import NotSupported
from tests.archive import peers

SECOND = 1_000_000_000


def entry(name: bytes = b"file", **given: object) -> bytes:
    values: dict[str, object] = {
        "kind": tarformat.REGULAR,
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": 0,
        "mtime_ns": 0,
    }
    return header(name, **{**values, **given})  # type: ignore[arg-type]


def read(blocks: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(blocks + END), errors="surrogateescape") as archive:
        [member] = archive.getmembers()
        return member


def test_an_ordinary_entry_is_one_block_as_go_writes_it() -> None:
    block = entry(b"etc/hosts", mode=0o640, uid=1, gid=2, size=511, mtime_ns=1_700_000_000 * SECOND)
    fields = [
        b"etc/hosts".ljust(100, b"\x00"),
        *(b"0000640\x00", b"0000001\x00", b"0000002\x00", b"00000000777\x00", b"14524770400\x00"),
        b"011117\x00 ",
        b"0".ljust(101, b"\x00"),
        b"ustar\x00",
        b"00".ljust(66, b"\x00"),
        *(b"0000000\x00", b"0000000\x00"),
        bytes(167),
    ]
    assert block == b"".join(fields)


def test_the_checksum_is_that_of_the_format() -> None:
    for name in (b"a", b"~" * 100, b"~" * 100 + b"/" + b"~" * 100, b"\xff" * 90):
        blocks = entry(name, link=b"~" * 100, kind=tarformat.SYMLINK)
        for start in range(0, len(blocks), 512):
            block = blocks[start : start + 512]
            if block[257:262] == b"ustar":
                assert int(block[148:154], 8) == sum(block[:148]) + sum(block[156:]) + 8 * 32


@pytest.mark.parametrize("length", [100, 101, 155, 200, 255, 256, 257, 300])
def test_long_names_use_the_prefix_field_where_they_can(length: int) -> None:
    name = (b"d" * 49 + b"/") * 6
    name = name[:length].rstrip(b"/")
    blocks = entry(name)
    assert len(blocks) == 512 if len(name) <= 250 else len(blocks) > 512
    assert read(blocks).name == name.decode()
    directory = read(entry(name + b"/", kind=tarformat.DIRECTORY))
    assert (directory.name, directory.isdir()) == (name.decode(), True)


@pytest.mark.parametrize(
    "name",
    ["ü".encode(), b"\xff\xfe", b"n" * 101, b"n" * 255, b"d/" + b"n" * 255, b"new\nline", b"a=b", b"12 a=b"],
)
def test_names_survive(name: bytes) -> None:
    member = read(entry(name))
    assert member.name.encode(errors="surrogateescape") == name
    linked = read(entry(b"x", kind=tarformat.SYMLINK, link=name))
    assert linked.linkname.encode(errors="surrogateescape") == name


@pytest.mark.parametrize("number", [0o7777777, 0o7777777 + 1, 2**31, 2**32 - 2])
def test_owners_of_any_size(number: int) -> None:
    member = read(entry(uid=number, gid=number))
    assert (member.uid, member.gid) == (number, number)


@pytest.mark.parametrize("size", [8 * 2**30 - 1, 8 * 2**30, 2**60])
def test_sizes_beyond_eight_gibibytes(size: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(entry(size=size) + bytes(512))) as archive:
        first = archive.next()
    assert first is not None
    assert first.size == size


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (1_500_000_000, None),
        (1_500_000_000.5, "1500000000.5"),
        (-1, "-1"),
        (-1.5, "-1.5"),
        (2**33, "8589934592"),
    ],
)
def test_times_use_a_record_where_the_field_cannot_say_them(time: float, text: str | None) -> None:
    member = read(entry(mtime_ns=int(time * SECOND)))
    assert member.mtime == time
    assert member.pax_headers.get("mtime") == text


def test_devices_carry_their_numbers() -> None:
    member = read(entry(kind=tarformat.BLOCK_DEVICE, device=(259, 70_000)))
    assert (member.devmajor, member.devminor) == (259, 70_000)


def test_records_count_their_own_length() -> None:
    for length in [*range(80, 110), *range(960, 1010)]:
        value = b"v" * length
        records = {attribute_key(b"user.k"): value}
        assert read(entry(records=records)).pax_headers["SCHILY.xattr.user.k"].encode() == value


def test_keys_of_attributes_cannot_be_misread() -> None:
    assert attribute_key(b"user.plain%") == b"SCHILY.xattr.user.plain%"
    assert attribute_key(b"user.a=b") == b"SCHILY.xattr.user.a%3Db"
    assert attribute_key(b"user.%3D") == b"SCHILY.xattr.user.%253D"


def test_what_readers_would_refuse_is_refused() -> None:
    records = {attribute_key(b"user.%d" % number): bytes(65_536) for number in range(16)}
    with pytest.raises(NotSupported, match="file") as caught:
        entry(b"a/file", records=records)
    assert caught.value.code == "archive.header_too_large"
    assert len(b"".join(records.values())) <= MAX_PAX


def test_padding_fills_a_block() -> None:
    assert [len(padding(size)) for size in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]


@pytest.mark.parametrize(
    "segments",
    [[], [(0, 4)], [(4096, 4)], [(0, 4), (8192, 4)], [(12_284, 4)]],
    ids=["hole only", "hole at the end", "in the middle", "two", "data at the end"],
)
def test_sparse_maps(segments: list[tuple[int, int]]) -> None:
    data = b"data" * len(segments)
    blocks = sparse_header(b"d/name", 0o600, 1, 2, 12_288, 0, segments) + data + padding(len(data))
    with tarfile.open(fileobj=io.BytesIO(blocks + END)) as archive:
        [member] = archive.getmembers()
        extracted = archive.extractfile(member)
        assert extracted is not None
        content = extracted.read()
    expected = bytearray(12_288)
    for start, length in segments:
        expected[start : start + length] = b"data"
    assert (member.name, member.size, content) == ("d/name", 12_288, bytes(expected))


@pytest.mark.lane("gnu_tar")
def test_gnu_tar_reads_what_does_not_fit(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(
        entry(b"n" * 200, uid=2**31, mtime_ns=-SECOND)
        + sparse_header("ü".encode() * 60, 0o600, 0, 0, 9 * 2**30, 0, [])
        + END
    )
    listed = peers.run("tar", "--utc", "--numeric-owner", "--full-time", "-tvf", archive)
    first, second = listed.splitlines()
    assert first.split() == ["-rw-r--r--", f"{2**31}/0", "0", "1969-12-31", "23:59:59", "n" * 200]
    assert second.split()[2] == str(9 * 2**30)
