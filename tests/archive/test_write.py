"""Exports: what goes into a layer tar, in which order, and what an export refuses."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from layerlimit.archive import Form, Written, read_stream, write
from layerlimit.archive.outflow import SIZE
from layerlimit.errors import Busy, Error, InvalidArgument, NotFound, NotSupported

ANCIENT = 1_000_000_000
SECOND = 1_000_000_000


def export(
    upper: Path, form: Form = Form.OVERLAY, **options: object
) -> tuple[list[tarfile.TarInfo], Written, bytes]:
    """The members of the tar that ``upper`` gives, what the export reports, and the tar's bytes."""
    out = io.BytesIO()
    written = write(upper, out, form=form, **options)  # type: ignore[arg-type]
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), mode="r:*") as archive:
        return archive.getmembers(), written, out.getvalue()


def names(upper: Path, form: Form = Form.OVERLAY, **options: object) -> list[str]:
    members, _, _ = export(upper, form, **options)
    return [member.name + "/" * member.isdir() for member in members]


def whiteout(path: Path) -> None:
    os.mknod(path, 0o20000, 0)


def opaque(path: Path) -> None:
    os.setxattr(path, "trusted.overlay.opaque", b"y")


# ---- order and names ---------------------------------------------------------------------------------


@pytest.mark.lane("root")
def test_parents_then_marks_then_names_in_order_of_bytes(tmp_path: Path) -> None:
    for name in ("b", "a", "d/z", "d/Z", "d/sub/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    whiteout(tmp_path / "zz gone")
    whiteout(tmp_path / "d/also gone")
    opaque(tmp_path / "d")
    assert names(tmp_path) == [
        ".wh.zz gone",
        "a",
        "b",
        "d/",
        "d/.wh..wh..opq",
        "d/.wh.also gone",
        "d/Z",
        "d/sub/",
        "d/sub/x",
        "d/z",
    ]


@pytest.mark.lane("root")
def test_marks_are_empty_files_of_1970(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o1750)
    os.chown(tmp_path / "d", 3, 4)
    opaque(tmp_path / "d")
    whiteout(tmp_path / "d/gone")
    (_, marker, gone), _, _ = export(tmp_path)
    assert (marker.name, marker.mode, marker.uid, marker.gid) == ("d/.wh..wh..opq", 0o750, 3, 4)
    assert (gone.name, gone.mode, gone.uid, gone.gid) == ("d/.wh.gone", 0, 0, 0)
    for mark in (marker, gone):
        assert (mark.isreg(), mark.size, mark.mtime, mark.pax_headers) == (True, 0, 0, {})


@pytest.mark.lane("root")
def test_both_forms_of_a_layer_give_the_same_bytes(tmp_path: Path) -> None:
    overlay, aufs = tmp_path / "overlay", tmp_path / "aufs"
    for root in (overlay, aufs):
        (root / "d/sub").mkdir(parents=True)
        (root / "d/file").write_bytes(b"content")
    whiteout(overlay / "d/gone")
    opaque(overlay / "d/sub")
    (aufs / "d/.wh.gone").touch()
    (aufs / "d/sub/.wh..wh..opq").touch()
    (aufs / ".wh..wh.aufs").touch()
    (aufs / ".wh..wh.orph").mkdir()
    (aufs / ".wh..wh.plnk").mkdir()
    (aufs / ".wh..wh.plnk/17.9").write_bytes(b"store of hard links")
    (overlay / "lost+found").mkdir()
    for root in (overlay, aufs):
        for path in (root / "d/file", root / "d/sub", root / "d"):
            os.utime(path, (ANCIENT, ANCIENT))
    assert export(overlay, Form.OVERLAY)[2] == export(aufs, Form.AUFS)[2]


@pytest.mark.lane("root")
def test_whiteouts_that_need_no_device_node(tmp_path: Path) -> None:
    for name in ("marked", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gone").touch()
        os.setxattr(tmp_path / name / "gone", "trusted.overlay.whiteout", b"")
    os.setxattr(tmp_path / "marked", "trusted.overlay.opaque", b"x")
    assert names(tmp_path) == ["marked/", "marked/.wh.gone", "plain/", "plain/gone"]


@pytest.mark.lane("root")
def test_with_lowers_an_opaque_mark_over_nothing_is_left_out(tmp_path: Path) -> None:
    upper, lower, bottom = (tmp_path / name for name in ("upper", "lower", "bottom"))
    for name in ("new", "old", "deleted", "file", "old/deep"):
        (upper / name).mkdir(parents=True)
        opaque(upper / name)
    for name in ("old/deep", "deleted"):
        (bottom / name).mkdir(parents=True)
    lower.mkdir()
    whiteout(lower / "deleted")
    (lower / "file").touch()
    kept = [name for name in names(upper, lowers=[lower, bottom]) if name.endswith("opq")]
    assert kept == ["old/.wh..wh..opq", "old/deep/.wh..wh..opq"]
    assert len([name for name in names(upper) if name.endswith("opq")]) == 5


@pytest.mark.lane("root")
@pytest.mark.parametrize("form", [Form.OVERLAY, Form.FLAT])
def test_a_file_named_like_a_mark_is_refused(tmp_path: Path, form: Form) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/.wh.precious").touch()
    with pytest.raises(NotSupported, match=r"d/\.wh\.precious") as caught:
        export(tmp_path, form)
    assert caught.value.code == "archive.reserved_name"


@pytest.mark.lane("root")
@pytest.mark.parametrize("form", [Form.AUFS, Form.FLAT])
def test_a_device_that_reads_as_a_whiteout_is_refused(tmp_path: Path, form: Form) -> None:
    whiteout(tmp_path / "device")
    with pytest.raises(NotSupported, match="device"):
        export(tmp_path, form)


@pytest.mark.lane("root")
@pytest.mark.parametrize("name", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
def test_what_keeps_its_content_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/renamed").mkdir()
    os.setxattr(tmp_path / "d/renamed", name, b"/old")
    with pytest.raises(NotSupported, match="d/renamed") as caught:
        export(tmp_path)
    assert caught.value.code == "archive.not_portable"


# ---- metadata ----------------------------------------------------------------------------------------


@pytest.mark.lane("root")
def test_attributes_of_the_user_leave_and_those_of_the_machine_do_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    kept = {"user.a": b"\0\n=", "security.capability": b"\x01\0\0\x02\0\x20\0\0" + bytes(12)}
    gone = {"trusted.x": b"1", "user.overlay.opaque": b"y", "trusted.overlay.overlay.opaque": b"y"}
    for name, value in {**kept, **gone}.items():
        os.setxattr(file, name, value)
    _, _, tar = export(tmp_path)
    assert tar.count(b"SCHILY.xattr.") == len(kept)
    for name, value in kept.items():
        assert b"SCHILY.xattr.%b=%b\n" % (name.encode(), value) in tar


@pytest.mark.lane("root")
def test_access_control_lists_leave(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # Version 2, then tag, permissions, id: owner rw-, user 7 r--, group r--, mask r--, other ---.
    entries = [(1, 6, -1), (2, 4, 7), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = b"\x02\0\0\0"
    for tag, permissions, who in entries:
        acl += b"".join(number.to_bytes(2, "little") for number in (tag, permissions))
        acl += who.to_bytes(4, "little", signed=True)
    os.setxattr(tmp_path / "file", "system.posix_acl_access", acl)
    assert b"SCHILY.xattr.system.posix_acl_access=" + acl in export(tmp_path)[2]


def test_capabilities_lose_the_user_namespace_they_were_set_in() -> None:
    from layerlimit.archive.write import _capability

    revision_2 = b"\x01\0\0\x02" + b"\x20".ljust(16, b"\0")
    assert _capability(revision_2) == revision_2
    assert _capability(b"\x01\0\0\x03" + b"\x20".ljust(16, b"\0") + b"\xe8\x03\0\0") == revision_2


def test_times_are_cut_to_seconds_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", ns=(0, 5 * SECOND + 999_999_999))
    [member], _, tar = export(tmp_path)
    assert (member.mtime, b"mtime=" in tar) == (5, False)
    assert b" mtime=5.999999999\n" in export(tmp_path, times="ns")[2]


def test_source_date_epoch_caps_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, time in [("old", 100), ("new", ANCIENT)]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))

    def times(**options: object) -> list[float]:
        return [member.mtime for member in export(tmp_path, Form.FLAT, **options)[0]]

    assert times() == [ANCIENT, 100]
    assert times(source_date_epoch=500) == [500, 100]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "200")
    assert times() == [200, 100]
    assert times(source_date_epoch=0) == [0, 0]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InvalidArgument, match="yesterday"):
        times()


def test_the_first_name_of_an_inode_carries_its_data(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "z").write_bytes(b"data")
    os.setxattr(tmp_path / "z", "user.a", b"1")
    os.link(tmp_path / "z", tmp_path / "d/a")
    os.link(tmp_path / "z", tmp_path / "b")
    (tmp_path / "s").symlink_to("nowhere")
    os.link(tmp_path / "s", tmp_path / "t", follow_symlinks=False)
    members, _, tar = export(tmp_path)
    assert [(m.name, m.type, m.size, m.linkname) for m in members if not m.isdir()] == [
        ("b", b"0", 4, ""),
        ("d/a", b"1", 0, "b"),
        ("s", b"2", 0, "nowhere"),
        ("t", b"1", 0, "s"),
        ("z", b"1", 0, "b"),
    ]
    assert tar.count(b"user.a") == 1


def test_sockets_are_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    (tmp_path / "file").touch()
    members, written, _ = export(tmp_path)
    assert [member.name for member in members] == ["file"]
    assert (written.entries, written.sockets) == (1, 1)


def test_an_export_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.utime(tmp_path / "file", ns=(1, 2))
    export(tmp_path)
    assert (tmp_path / "file").stat().st_atime_ns == 1


# ---- content, digests, compression -------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, SIZE - 512, SIZE - 511, SIZE, SIZE + 1, 3 * SIZE + 7])
def test_content_across_the_buffers(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"after")
    out = io.BytesIO()
    written = write(tmp_path, out, form=Form.FLAT)
    assert written.bytes == len(out.getvalue())
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        first, second = (archive.extractfile(name) for name in ("a", "b"))
        assert first is not None
        assert second is not None
        assert (first.read(), second.read()) == (content, b"after")


def make_layer(root: Path) -> None:
    for number in range(300):
        (root / f"file{number:03}").write_bytes(os.urandom(50 * number) + bytes(70 * number))


@pytest.mark.parametrize(
    ("compression", "levels"),
    [("gzip", [None, 0, 1, 2, 3, 4, 6, 9]), ("zstd", [None, 1, 3, 10, -1])],
)
def test_compressed_exports_hold_the_same_tar(
    tmp_path: Path, compression: Literal["gzip", "zstd"], levels: list[int | None]
) -> None:
    make_layer(tmp_path)
    plain = io.BytesIO()
    expected = write(tmp_path, plain, form=Form.FLAT)
    assert expected.diff_id == expected.digest == digest(plain.getvalue())
    for level in levels:
        outs = [io.BytesIO(), io.BytesIO()]
        first, second = (
            write(tmp_path, out, form=Form.FLAT, compression=compression, level=level) for out in outs
        )
        data = outs[0].getvalue()
        assert (first, data) == (second, outs[1].getvalue())
        assert (first.diff_id, first.bytes) == (expected.diff_id, expected.bytes)
        assert (first.digest, first.compressed_bytes) == (digest(data), len(data))
        assert len(data) < expected.bytes
        unpacked = subprocess.run([compression, "-dc"], input=data, check=True, capture_output=True)
        assert unpacked.stdout == plain.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_gzip_header_tells_no_time_and_no_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for level in (1, 6):
        out = io.BytesIO()
        write(tmp_path, out, form=Form.FLAT, compression="gzip", level=level)
        assert out.getvalue()[3:8] == bytes(5)
        assert gzip.decompress(out.getvalue())


@pytest.mark.parametrize(
    ("compression", "level"), [("gzip", 10), ("gzip", -1), ("zstd", 23), ("zstd", 0), ("lzma", 1)]
)
def test_unknown_compression_is_refused(tmp_path: Path, compression: str, level: int) -> None:
    out = io.BytesIO()
    with pytest.raises(InvalidArgument, match=str(level) if compression != "lzma" else "lzma"):
        write(tmp_path, out, form=Form.FLAT, compression=compression, level=level)  # type: ignore[arg-type]
    assert out.getvalue() == b""


def test_holes_are_written_as_zeros_or_as_holes(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(4 << 20)
        for offset in (1 << 20, (3 << 20) + 4096):
            file.seek(offset)
            file.write(b"data")
    content = (tmp_path / "file").read_bytes()
    for sparse in (False, True):
        out = io.BytesIO()
        written = write(tmp_path, out, form=Form.FLAT, sparse=sparse)
        assert (written.bytes < 1 << 20) is sparse
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
            extracted = archive.extractfile("file")
            assert extracted is not None
            assert extracted.read() == content


@pytest.mark.lane("strace")
@pytest.mark.parametrize("sparse", [False, True])
def test_holes_are_not_read_from_disk(tmp_path: Path, *, sparse: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with (root / "file").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    program = (
        "import sys; from pathlib import Path; from layerlimit.archive import *;"
        f"write(Path(sys.argv[1]), open('/dev/null', 'wb'), form=Form.FLAT, sparse={sparse})"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=read,readv,pread64,preadv", "-o", str(trace)]
    subprocess.run([*command, sys.executable, "-c", program, str(root)], check=True)
    reads = [line for line in trace.read_text().splitlines() if f"<{root}/file>" in line]
    assert reads
    assert sum(int(line.rpartition("= ")[2]) for line in reads) <= 4096


def test_an_empty_layer_is_an_empty_tar(tmp_path: Path) -> None:
    members, written, tar = export(tmp_path)
    assert (members, written.entries, tar) == ([], 0, bytes(1024))


# ---- trees that change, outputs that fail ------------------------------------------------------------


class Meddling(io.BytesIO):
    """An output whose first write does something to the tree."""

    def __init__(self, deed: Callable[[], object]) -> None:
        super().__init__()
        self._deeds = [deed]

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        while self._deeds:
            self._deeds.pop()()
        return super().write(data)


def big_then(root: Path, *later: str) -> None:
    """A tree whose first file fills more than a buffer, so that a write comes before ``later`` are read."""
    (root / "a").write_bytes(bytes(3 * SIZE))
    for name in later:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"later")


@pytest.mark.parametrize("live", [False, True])
def test_a_file_that_shrinks_is_an_error(tmp_path: Path, *, live: bool) -> None:
    big_then(tmp_path)
    out = Meddling(lambda: os.truncate(tmp_path / "a", SIZE))
    with pytest.raises(Busy, match="a: it shrank") as caught:
        write(tmp_path, out, form=Form.FLAT, live=live)
    assert caught.value.code == "archive.file_changed"


def test_a_file_that_grows_goes_out_as_it_was(tmp_path: Path) -> None:
    big_then(tmp_path, "b")
    out = Meddling(lambda: os.truncate(tmp_path / "a", 10 * SIZE))
    write(tmp_path, out, form=Form.FLAT)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert [(member.name, member.size) for member in archive] == [("a", 3 * SIZE), ("b", 5)]


@pytest.mark.parametrize("gone", ["b", "d"])
def test_what_vanishes_is_an_error_unless_the_tree_is_live(tmp_path: Path, gone: str) -> None:
    big_then(tmp_path, "b", "d/x", "e")

    def vanish() -> None:
        path = tmp_path / gone
        path.rename(tmp_path.with_name(f"{tmp_path.name}-{gone}"))

    def appear() -> None:
        tmp_path.with_name(f"{tmp_path.name}-{gone}").rename(tmp_path / gone)

    with pytest.raises(NotFound, match=gone):
        write(tmp_path, Meddling(vanish), form=Form.FLAT)
    appear()
    out = Meddling(vanish)
    write(tmp_path, out, form=Form.FLAT, live=True)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        found = archive.getnames()
    assert gone not in found
    assert {"a", "e"} < set(found)


def test_a_fifo_in_place_of_a_listed_file_does_not_block(tmp_path: Path) -> None:
    big_then(tmp_path, "b")

    def swap() -> None:
        (tmp_path / "b").unlink()
        os.mkfifo(tmp_path / "b")

    out = Meddling(swap)
    write(tmp_path, out, form=Form.FLAT)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert [member.isfifo() for member in archive] == [False, True]


def test_a_symlink_in_place_of_a_listed_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    big_then(tmp_path / "root", "b", "d/x")

    def swap() -> None:
        (tmp_path / "root/b").unlink()
        (tmp_path / "root/b").symlink_to(tmp_path / "secret")

    out = Meddling(swap)
    write(tmp_path / "root", out, form=Form.FLAT)
    assert b"secret" not in out.getvalue().replace(os.fsencode(tmp_path / "secret"), b"")


class Failing(io.RawIOBase):
    def write(self, data: object, /) -> int:
        raise BrokenPipeError("nobody reads")


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_what_the_output_raises_passes_through(tmp_path: Path, compression: Literal["gzip"] | None) -> None:
    make_layer(tmp_path)
    before = threading.active_count()
    with Failing() as out, pytest.raises(BrokenPipeError, match="nobody reads"):
        write(tmp_path, out, form=Form.FLAT, compression=compression)
    assert threading.active_count() == before


class Sipping(io.RawIOBase):
    """A raw file that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        self.taken += data[:70_000]
        return min(len(data), 70_000)


def test_short_writes_are_continued(tmp_path: Path) -> None:
    make_layer(tmp_path)
    whole = io.BytesIO()
    write(tmp_path, whole, form=Form.FLAT)
    with Sipping() as out:
        write(tmp_path, out, form=Form.FLAT)
        assert bytes(out.taken) == whole.getvalue()


# ---- streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_a_stream_is_what_write_writes(tmp_path: Path, compression: Literal["gzip", "zstd"] | None) -> None:
    make_layer(tmp_path)
    out = io.BytesIO()
    written = write(tmp_path, out, form=Form.FLAT, compression=compression)
    with read_stream(tmp_path, form=Form.FLAT, compression=compression) as stream:
        pieces = [stream.read(size) for size in (1, 511, 70_000)]
        assert stream.written is None
        pieces.append(stream.read())
        assert stream.written == written
    assert b"".join(pieces) == out.getvalue()


def test_an_error_reaches_the_reader(tmp_path: Path) -> None:
    big_then(tmp_path)
    (tmp_path / ".wh.z").touch()
    with read_stream(tmp_path, form=Form.FLAT) as stream, pytest.raises(NotSupported):
        stream.read()
    with read_stream(tmp_path / "none", form=Form.FLAT) as stream, pytest.raises(NotFound):
        stream.read(1)


def test_an_error_in_the_middle_reaches_the_reader(tmp_path: Path) -> None:
    big_then(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.wh.z").touch()
    taken = 0
    with read_stream(tmp_path, form=Form.FLAT) as stream, pytest.raises(Error):  # noqa: PT012
        while data := stream.read(SIZE):
            taken += len(data)
    assert taken < 3 * SIZE + 1024


@pytest.mark.parametrize("taken", [0, 1, SIZE + 1])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_closing_early_stops_the_export(
    tmp_path: Path, taken: int, compression: Literal["zstd"] | None
) -> None:
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 1 << 40)  # an export of it would take an hour
    threads, descriptors = threading.active_count(), set(os.listdir("/proc/self/fd"))
    stream = read_stream(tmp_path, form=Form.FLAT, compression=compression)
    if compression is None:
        assert len(stream.read(taken)) == taken
    stream.close()
    assert threading.active_count() == threads
    assert len(set(os.listdir("/proc/self/fd"))) == len(descriptors)
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_a_dropped_stream_stops_the_export(tmp_path: Path) -> None:
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 1 << 40)
    threads = threading.active_count()
    stream = read_stream(tmp_path, form=Form.FLAT)
    assert threading.active_count() > threads
    del stream
    assert threading.active_count() == threads


# ---- deep, wide, strange -----------------------------------------------------------------------------


def test_directories_deeper_than_what_is_held_open(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("z", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    found = names(tmp_path)
    assert len(found) == 400
    assert found[199:202] == ["d/" * 200, "d/" * 199 + "z", "d/" * 198 + "z"]


def test_a_directory_that_is_moved_meanwhile_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(50):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("z", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    deepest = os.open("big", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.truncate(deepest, 3 * SIZE)
    os.close(deepest)
    os.close(fd)
    moved = tmp_path / ("d/" * 5)
    out = Meddling(lambda: moved.rename(tmp_path / "elsewhere"))
    with pytest.raises(Error, match="moved while it was read"):
        write(tmp_path, out, form=Form.FLAT)
