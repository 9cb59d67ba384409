"""The reader understands what others write, and says what it does not."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerlimit.archive.limits import Limits
from layerlimit.archive.reader import Reader
from layerlimit.errors import Error, InvalidArgument, OutOfSpace
from tests.archive import peers
from tests.archive.archives import END, archive, entry, file, header, padded, pax, seal

Entry = tuple[bytes, str, int, int, bytes, bytes]  # name, type, mode, size, link, content


def chunks(data: bytes, *, size: int = 512 * 7) -> Callable[[], memoryview]:
    """A source of chunks as the reader wants them."""
    position = 0

    def source() -> memoryview:
        nonlocal position
        chunk = memoryview(data)[position : position + size]
        position += size
        return chunk

    return source


def content(reader: Reader) -> bytes:
    """The whole content of the current entry, holes included."""
    stored = b"".join(bytes(piece) for piece in iter(reader.take, b""))
    if reader.regions is None:
        return stored
    out = bytearray(reader.size)
    position = 0
    for offset, length in zip(reader.regions[::2], reader.regions[1::2], strict=True):
        out[offset : offset + length] = stored[position : position + length]
        position += length
    return bytes(out)


def entries(data: bytes, **options: int) -> Iterator[Entry]:
    reader = Reader(chunks(data, **options))
    while reader.advance():
        link = reader.link_name if chr(reader.type) in "12" else b""
        yield reader.name, chr(reader.type), reader.mode, reader.size, link, content(reader)
    reader.drain()


def only(data: bytes) -> Reader:
    """A reader at the first entry."""
    reader = Reader(chunks(data))
    assert reader.advance()
    return reader


def failure(data: bytes, limits: Limits | None = None) -> Error:
    """The error that reading ``data`` to the end ends with."""
    reader = Reader(chunks(data), limits=limits)
    try:
        while reader.advance():
            content(reader)
    except (InvalidArgument, OutOfSpace) as error:
        return error
    raise AssertionError("the archive is read without an error")


# ---- what others write -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names, sizes and kinds of all sorts."""
    root = tmp_path_factory.mktemp("tree")
    some = random.Random(1)
    for number in range(60):
        place = root / ("d" * (number * 4 % 200 + 1)) / ("é" * (number % 2)) / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(some.randbytes(some.choice([0, 1, 511, 512, 513, 5000])))
        place.chmod(some.choice([0o644, 0o4755, 0o600]))
        os.utime(place, ns=(0, some.randrange(1 << 60)))
    (root / "link").symlink_to("t" * 150)
    (root / "hard").hardlink_to(root / "d/file0")
    os.mkfifo(root / "fifo")
    return root


@pytest.mark.lane("gnu_tar")
@pytest.mark.parametrize("form", ["ustar", "gnu", "oldgnu", "posix"])
def test_reads_gnu_tar(form: str, tree: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    command = ["tar", f"--format={form}", "-cf", str(made), "-C", str(tree), "."]
    subprocess.run(command, check=form != "ustar", capture_output=True)  # ustar cannot hold all names
    assert list(entries(made.read_bytes())) == list(as_tarfile_reads(made))


@pytest.mark.lane("bsdtar")
@pytest.mark.parametrize("form", ["ustar", "pax", "gnutar"])
def test_reads_bsdtar(form: str, tree: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    command = ["bsdtar", "--format", form, "-cf", str(made), "-C", str(tree), "."]
    subprocess.run(command, check=form != "ustar", capture_output=True)
    assert list(entries(made.read_bytes())) == list(as_tarfile_reads(made))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_tarfile(form: int, tree: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    with tarfile.open(made, "w", format=form, errors="surrogateescape") as out:
        out.add(tree / "d", "d")
        out.add(tree / "fifo", "fifo")
    assert list(entries(made.read_bytes())) == list(as_tarfile_reads(made))


def as_tarfile_reads(path: Path) -> Iterator[Entry]:
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            data = tar.extractfile(member) if member.isreg() else None
            yield (
                os.fsencode(member.name) + b"/" * (member.isdir() and member.name != ""),
                member.type.decode(),
                member.mode,
                member.size if member.isreg() else 0,
                os.fsencode(member.linkname) if member.issym() or member.islnk() else b"",
                data.read() if data else b"",
            )


@pytest.mark.lane("gnu_tar")
@pytest.mark.parametrize(
    "form",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
    ids=lambda form: form[-1],
)
@pytest.mark.parametrize("regions", [0, 1, 3, 60])
def test_reads_sparse_files(form: list[str], regions: int, tmp_path: Path) -> None:
    place = tmp_path / ("sparse" * 20)
    with place.open("wb") as out:
        out.truncate(regions * 40_960 + 10_000)
        for number in range(regions):
            out.seek(number * 40_960 + 4096)
            out.write(bytes([number + 1]) * 4096)
    made = tmp_path / "a.tar"
    names = [place.name, "after"]
    (tmp_path / "after").write_bytes(b"after")
    subprocess.run(["tar", *form, "--sparse", "-cf", str(made), "-C", str(tmp_path), *names], check=True)
    (name, _, _, size, _, data), after = entries(made.read_bytes())
    assert made.stat().st_size < place.stat().st_size or not regions
    assert (name, size) == (os.fsencode(place.name), place.stat().st_size)
    assert data == place.read_bytes()
    assert after[0] == b"after"
    assert after[5] == b"after"


@pytest.mark.parametrize("size", [512, 1024, 512 * 7, 1 << 20])
def test_chunks_make_no_difference(size: int, tree: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.tar"
    with tarfile.open(made, "w", format=tarfile.PAX_FORMAT) as out:
        out.add(tree, ".")
    assert list(entries(made.read_bytes(), size=size)) == list(as_tarfile_reads(made))


# ---- headers ---------------------------------------------------------------------------------------


def test_numbers_in_base_256() -> None:
    reader = only(archive(header(b"f", uid=2**40, gid=2**31, mtime=-7, size=0)))
    assert (reader.uid, reader.gid, reader.mtime) == (2**40, 2**31, -7_000_000_000)


def test_size_over_8_gib_in_base_256() -> None:
    assert only(header(b"f", size=2**33 + 5)).size == 2**33 + 5


@pytest.mark.parametrize("field", [b"0000644 ", b"   644 \0", b"644\0\0\0\0\0", b"644\0junk", b"    644\0"])
def test_number_fields_of_all_writers(field: bytes) -> None:
    block = bytearray(header(b"f"))
    block[100:108] = field
    assert only(seal(block)).mode == 0o644


@pytest.mark.parametrize(
    "field", [b"0000844\0", b"0o00644\0", b"00_0644\0", b"+000644\0", b"-000644\0", b"x" * 8]
)
def test_what_is_no_number(field: bytes) -> None:
    block = bytearray(header(b"the-name"))
    block[100:108] = field
    error = failure(seal(block))
    assert error.code == "archive.invalid"
    assert "the-name" in error.message


@pytest.mark.parametrize("field", [b"00000000008\0", b"0000000000_1", b"\xff" * 12, b"\x80" + b"\xff" * 11])
def test_what_is_no_size(field: bytes) -> None:
    block = bytearray(header(b"the-name"))
    block[124:136] = field
    assert "the-name" in failure(seal(block)).message


def test_ustar_prefix_and_that_of_star() -> None:
    assert only(header(b"name", prefix=b"a/b")).name == b"a/b/name"
    star = bytearray(header(b"name", prefix=b"a/b"))
    star[476:500] = b"12345678901 12345678901 "
    star[508:512] = b"tar\0"
    assert only(seal(star)).name == b"a/b/name"
    # GNU tar keeps other things there.
    assert only(header(b"name", prefix=b"1234", magic=b"ustar  \0")).name == b"name"


def test_signed_checksums() -> None:
    block = bytearray(header(b"\xff\xfe"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    assert only(bytes(block)).name == b"\xff\xfe"


def test_checksums_of_odd_form() -> None:
    block = bytearray(header(b"f"))
    block[148:156] = b"0" + block[148:154] + b"\0"
    assert only(bytes(block)).name == b"f"


def test_wrong_checksum() -> None:
    broken = bytearray(file(b"second"))
    broken[0] ^= 1
    error = failure(file(b"first", b"x") + bytes(broken) + END)
    assert error.code == "archive.checksum"
    assert "first" in error.message
    assert "1024" in error.message


@pytest.mark.parametrize(
    "create",
    [
        pytest.param(peers.gnu_create, marks=pytest.mark.lane("gnu_tar"), id="gnu_tar"),
        pytest.param(peers.bsd_create, marks=pytest.mark.lane("bsdtar"), id="bsdtar"),
    ],
)
def test_names_of_attributes_as_others_escape_them(tmp_path: Path, create: peers.Create) -> None:
    attributes = {
        b"user.a": b"1",
        b"user.a=b": b"2",
        b"user.p%q": b"3",
        b"user.%3D": b"4",
        b"user.%25y": b"5",
    }
    attributes |= {b"user.%3d": b"6", "user.ö".encode(): b"7"}
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").touch()
    for name, value in attributes.items():
        os.setxattr(tmp_path / "tree/file", name, value)
    create(tmp_path / "tree", tmp_path / "archive.tar")
    assert only((tmp_path / "archive.tar").read_bytes()).xattrs == attributes


def test_pax_overrides() -> None:
    extended = {
        b"path": b"long/\xff\n=name",
        b"linkpath": b"target\n",
        b"uid": b"3000000000",
        b"gid": b"7",
        b"mtime": b"12.5",
        b"atime": b"13.000000001",
        b"SCHILY.xattr.user.a": b"\0\n=",
        b"SCHILY.xattr.user.empty": b"",
        b"comment": b"\xff",
    }
    reader = only(archive(entry(b"short", kind=b"2", link=b"t", extended=extended)))
    assert (reader.name, reader.link_name) == (b"long/\xff\n=name", b"target\n")
    assert (reader.uid, reader.gid) == (3_000_000_000, 7)
    assert (reader.mtime, reader.atime) == (12_500_000_000, 13_000_000_001)
    assert reader.xattrs == {b"user.a": b"\0\n=", b"user.empty": b""}


def test_pax_records_do_not_reach_the_next_entry() -> None:
    reader = only(archive(entry(b"a", extended={b"SCHILY.xattr.user.a": b"1", b"uid": b"9"}), file(b"b")))
    assert reader.advance()
    assert (reader.name, reader.uid, reader.xattrs) == (b"b", 0, {})


def test_pax_size_counts() -> None:
    data = b"x" * 700
    got = list(entries(archive(entry(b"f", data, extended={b"size": b"700"}, size=3), file(b"after", b"y"))))
    assert [(each[0], each[3], each[5]) for each in got] == [(b"f", 700, data), (b"after", 1, b"y")]


def test_global_headers_are_ignored() -> None:
    got = list(entries(pax([(b"path", b"evil"), (b"uid", b"5")], kind=b"g") + archive(file(b"f", b"x"))))
    assert [(each[0], each[5]) for each in got] == [(b"f", b"x")]


def test_chains_of_gnu_long_names() -> None:
    name, link = b"n" * 3000, b"l" * 2000
    data = (
        header(b"././@LongLink", kind=b"K", size=len(link) + 1)
        + padded(link + b"\0")
        + header(b"././@LongLink", kind=b"L", size=len(name) + 1)
        + padded(name + b"\0")
        + archive(entry(b"n" * 100, kind=b"2", link=b"l" * 100, extended={}))
    )
    reader = only(data)
    assert (reader.name, reader.link_name) == (name, link)


@pytest.mark.parametrize(
    ("kind", "name", "seen"), [(b"\0", b"f", "0"), (b"\0", b"d/", "5"), (b"7", b"f", "0")]
)
def test_old_and_odd_types(kind: bytes, name: bytes, seen: str) -> None:
    assert chr(only(archive(entry(name, kind=kind))).type) == seen


def test_links_have_no_data() -> None:
    got = list(entries(archive(entry(b"l", kind=b"1", link=b"f", size=5000), file(b"after"))))
    assert [each[0] for each in got] == [b"l", b"after"]


@pytest.mark.parametrize("kind", [b"V", b"M", b"D", b"N", b"X", b"A", b"9"])
def test_unsupported_types(kind: bytes) -> None:
    error = failure(archive(entry(b"the-name", kind=kind)))
    assert error.code == "archive.unsupported"
    assert "the-name" in error.message


# ---- ends ------------------------------------------------------------------------------------------

WHOLE = archive(file(b"first", b"x" * 700), entry(b"n" * 150, b"y" * 100))


@pytest.mark.parametrize(
    "cut", [*range(1, 512, 50), *range(513, 1536, 100), *range(1537, len(WHOLE) - 1024, 64)]
)
def test_truncation(cut: int) -> None:
    error = failure(WHOLE[:cut])
    assert error.code == "archive.truncated"
    assert cut < 512 or "first" in error.message or "nnn" in error.message or "PaxHeader" in error.message


@pytest.mark.parametrize("end", [b"", bytes(512), END, END + b"junk" * 1000, END + WHOLE])
def test_ends(end: bytes) -> None:
    assert [each[0] for each in entries(file(b"f", b"x") + end)] == [b"f"]


def test_empty_stream() -> None:
    assert list(entries(b"")) == []


def test_lone_zero_block() -> None:
    assert failure(file(b"f") + bytes(512) + file(b"g")).code == "archive.invalid"


# ---- malformed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"4 a=\n",
        b"6 a=b\nx",
        b"6 a=b ",
        b"99999999999999999999 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"5 ab\n",
        b"5 =b\n",
        b" a=b\n",
        b"a=b\n",
        b"\xb26 a=b\n",
    ],
)
def test_malformed_pax_records(content: bytes) -> None:
    data = header(b"PaxHeader", kind=b"x", size=len(content)) + padded(content) + archive(file(b"f"))
    assert failure(data).code == "archive.invalid"


@pytest.mark.parametrize(
    "records",
    [
        [(b"size", b"-1")],
        [(b"size", b"9" * 19)],
        [(b"size", b"1" * 5000)],
        [(b"uid", b"x")],
        [(b"SCHILY.xattr.user.a\0b", b"x")],
        [(b"linkpath", b"a\0b")],
        [(b"GNU.sparse.offset", b"0")],
        [(b"GNU.sparse.numbytes", b"0"), (b"GNU.sparse.offset", b"0")],
        [(b"GNU.sparse.map", b"0,1,2"), (b"GNU.sparse.size", b"10")],
        [(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"10")],  # more than is stored
        [(b"GNU.sparse.map", b"20,0"), (b"GNU.sparse.size", b"10")],
        [(b"GNU.sparse.map", b"5,0,4,0"), (b"GNU.sparse.size", b"10")],
        [(b"GNU.sparse.map", b"0,0")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"10")],
        [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"10")],
    ],
)
def test_impossible_pax_records(records: list[tuple[bytes, bytes]]) -> None:
    error = failure(pax(records) + archive(file(b"the-name")))
    assert error.code in ("archive.invalid", "archive.unsupported")
    assert "the-name" in error.message or "PaxHeader" in error.message


@pytest.mark.parametrize(
    "stored", [b"x\n", b"1\n", b"2\n0\n1\n", b"99999999999\n", b"7" * 512, b"1\n-1\n5\n"]
)
def test_broken_stored_sparse_maps(stored: bytes) -> None:
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"10")]
    assert failure(pax(records) + archive(file(b"f", padded(stored)))).message


# ---- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(entries=3), archive(*[file(b"f")] * 4)),
        (Limits(pax_bytes=1000), archive(entry(b"f", extended={b"comment": b"x" * 1000}))),
        (Limits(pax_bytes=1000), header(b"L", kind=b"L", size=1001)),
        (Limits(xattrs=2), archive(entry(b"f", extended={b"SCHILY.xattr.%d" % n: b"" for n in range(3)}))),
        (Limits(xattr_bytes=9), archive(entry(b"f", extended={b"SCHILY.xattr.user.a": bytes(10)}))),
        (
            Limits(sparse_regions=1),
            pax([(b"GNU.sparse.map", b"0,0,1,0"), (b"GNU.sparse.size", b"10")]) + archive(file(b"f")),
        ),
    ],
    ids=["entries", "pax", "long name", "xattrs", "xattr bytes", "regions"],
)
def test_limits(limits: Limits, data: bytes) -> None:
    error = failure(data, limits)
    assert isinstance(error, InvalidArgument)
    assert error.code == "archive.limit"


def test_limit_of_bytes() -> None:
    error = failure(archive(file(b"f", bytes(10_000))), Limits(expanded_bytes=9_000))
    assert isinstance(error, OutOfSpace)
    assert error.code == "archive.limit"


def test_limit_of_bytes_counts_holes() -> None:
    data = pax([(b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"1000000000000")]) + archive(file(b"hole"))
    error = failure(data, Limits(expanded_bytes=10**12 - 1))
    assert isinstance(error, OutOfSpace)
    assert "hole" in error.message


def test_stream_of_tarfile_is_read_as_a_whole() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    reader = Reader(chunks(out.getvalue()))
    while reader.advance():
        pass
    reader.drain()
    assert reader.offset == len(out.getvalue())
