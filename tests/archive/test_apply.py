"""What a layer becomes on disk, apart from attacks: :mod:`tests.archive.test_attacks`."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import io
import os
import re
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from layerlimit.archive import Applied, Form, Limits, apply, native
from layerlimit.errors import Error, InvalidArgument, OutOfSpace, PermissionDenied
from layerlimit.linux.files import sync_file_system
from layerlimit.linux.mount import unmount
from tests.archive import naive
from tests.archive.archives import MTIME, archive, device, entry, file, folder, hardlink, symlink
from tests.archive.attack_case import deleted, opaque
from tests.archive.layers import overlay
from tests.archive.test_attacks import outcome
from tests.archive.world import World

pytestmark = pytest.mark.lane("root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir(mode=0o755)
    return tmp_path / "root"


def put(root: Path, *entries: bytes, form: Form = Form.FLAT, **options: object) -> Applied:
    return apply(io.BytesIO(archive(*entries)), root, form=form, durable=False, **options)  # type: ignore[arg-type]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---- the answer ------------------------------------------------------------------------------------


def test_bytes_entries_and_diff_id(root: Path) -> None:
    data = archive(file(b"a", b"x" * 1000), folder(b"d"), file(b"d/b", b"y" * 24), symlink(b"l", b"target"))
    data += b"after the end"
    applied = apply(io.BytesIO(gzip.compress(data)), root, form=Form.FLAT)
    assert applied == Applied(
        bytes=1024 + len("target"),
        entries=4,
        diff_id=f"sha256:{hashlib.sha256(data).hexdigest()}",
        tar_bytes=len(data),
        skipped=0,
        warnings=(),
    )


def test_sparse_files_count_whole_and_stay_sparse(root: Path) -> None:
    sparse = {b"GNU.sparse.map": b"1048576,3,5000000,0", b"GNU.sparse.size": b"9000000"}
    assert put(root, entry(b"s", b"abc", extended=sparse)).bytes == 9_000_000
    content = (root / "s").read_bytes()
    assert len(content) == 9_000_000
    assert content.strip(b"\0") == b"abc"
    assert content[1048576:1048579] == b"abc"
    assert (root / "s").stat().st_blocks * 512 < 100_000


def test_empty_stream_is_an_empty_layer(root: Path) -> None:
    applied = apply(io.BytesIO(b""), root, form=Form.OVERLAY)
    assert (applied.bytes, applied.entries) == (0, 0)
    assert applied.diff_id == f"sha256:{hashlib.sha256(b'').hexdigest()}"
    assert os.listdir(root) == []


def test_root_must_exist(tmp_path: Path) -> None:
    with pytest.raises(Error, match="no-root"):
        put(tmp_path / "no-root", file(b"a"))


# ---- metadata --------------------------------------------------------------------------------------


def test_root_is_left_alone(root: Path) -> None:
    before = root.stat()
    put(root, folder(b".", mode=0o700, uid=5), folder(b"./", mode=0o700, uid=5))
    after = root.stat()
    assert (before.st_mode, before.st_uid, before.st_mtime_ns) == (
        after.st_mode,
        after.st_uid,
        after.st_mtime_ns,
    )


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(umask: int, root: Path) -> None:
    modes = [0o7777, 0o4755, 0o2755, 0o666, 0o600, 0o070, 0]
    entries = [
        each for m in modes for each in (file(b"f%o" % m, b"x", mode=m, uid=m), folder(b"d%o" % m, mode=m))
    ]
    before = os.umask(umask)
    try:
        put(root, *entries, entry(b"fifo", kind=b"6", mode=0o666), device(b"null", 1, 3, mode=0o4666))
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for m in modes:
        assert mode(root / f"f{m:o}") == m
        assert mode(root / f"d{m:o}") == m
        assert (root / f"f{m:o}").stat().st_uid == m
    assert mode(root / "fifo") == 0o666
    assert mode(root / "null") == 0o4666


def test_set_gid_directories_pass_nothing_on(root: Path) -> None:
    root.chmod(0o2755)
    os.chown(root, 0, 77)
    children = [file(b"f"), folder(b"s"), symlink(b"l", b"f"), entry(b"p", kind=b"6"), device(b"c", 1, 3)]
    put(root, *children, folder(b"d", mode=0o2775, gid=88))
    put(root, file(b"d/f", mode=0o640), folder(b"d/s"), file(b"d/s/deep"))
    for name in ("f", "s", "l", "p", "c", "d/f", "d/s", "d/s/deep"):
        assert (root / name).lstat().st_gid == 0
    assert (mode(root / "s"), mode(root / "d/s"), mode(root / "d/f")) == (0o755, 0o755, 0o640)
    assert (mode(root / "d"), (root / "d").stat().st_gid) == (0o2775, 88)


def acl(*rows: tuple[int, int, int]) -> bytes:
    """An ACL attribute: (tag, permissions, id) after the version."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


ACL = acl((1, 7, 2**32 - 1), (2, 7, 1234), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1))


def test_default_acls_pass_nothing_on(root: Path) -> None:
    os.setxattr(root, "system.posix_acl_default", ACL)
    own = {b"SCHILY.xattr.system.posix_acl_default": ACL, b"SCHILY.xattr.system.posix_acl_access": ACL}
    put(
        root,
        file(b"f", mode=0o600),
        folder(b"d", mode=0o750),
        file(b"d/f", mode=0o644),
        entry(b"p", kind=b"6", mode=0o622),
        file(b"implied/f", mode=0o611),
        entry(b"own/", kind=b"5", mode=0o770, extended=own),
        file(b"own/f", mode=0o666),
        folder(b"own/d", mode=0o700),
    )
    for name, expected in {
        "f": 0o600,
        "d": 0o750,
        "d/f": 0o644,
        "p": 0o622,
        "implied": 0o755,
        "implied/f": 0o611,
        "own/f": 0o666,
        "own/d": 0o700,
    }.items():
        assert mode(root / name) == expected
        assert os.listxattr(root / name) == []
    assert {name: os.getxattr(root / "own", name) for name in os.listxattr(root / "own")} == {
        "system.posix_acl_default": ACL,
        "system.posix_acl_access": ACL,
    }


def test_capabilities_survive_the_owner(root: Path) -> None:
    capability = b"\x01\0\0\x02\0\x20\0\0" + bytes(12)
    extended = {b"SCHILY.xattr.security.capability": capability, b"SCHILY.xattr.user.x": b"\0y"}
    put(root, entry(b"ping", b"elf", mode=0o4755, uid=9, extended=extended))
    assert os.getxattr(root / "ping", "security.capability") == capability
    assert os.getxattr(root / "ping", "user.x") == b"\0y"
    assert mode(root / "ping") == 0o4755


def test_attributes_that_cannot_be_are_left_out_with_a_warning(root: Path) -> None:
    user = {b"SCHILY.xattr.user.x": b"y"}
    odd = {b"SCHILY.xattr.nonsense.x": b"y"}
    applied = put(
        root,
        entry(b"l", kind=b"2", link=b"t", extended=user),
        entry(b"p", kind=b"6", extended=user),
        entry(b"f", extended=odd),
    )
    assert applied.skipped == 3
    assert all(name in warning for name, warning in zip("lpf", applied.warnings, strict=True))


def test_times(root: Path) -> None:
    exact = {b"mtime": b"1600000000.123456789", b"atime": b"1700000000.5"}
    old = {b"mtime": b"1600000000.123456789", b"atime": b"1"}
    put(
        root,
        folder(b"d", mtime=1234),
        folder(b"d/sub", mtime=2345),
        entry(b"d/sub/f", b"x", extended=exact),
        entry(b"d/g", extended=old),
        symlink(b"d/l", b"g", mtime=77),
        entry(b"d/p", kind=b"6", mtime=78),
        hardlink(b"d/h", b"d/p", mtime=79),
        folder(b"e/new", mtime=5),
    )
    assert (root / "d/sub/f").stat().st_mtime_ns == 1600000000123456789
    assert (root / "d/sub/f").stat().st_atime_ns == 1700000000500000000
    assert (root / "d/g").stat().st_atime_ns == 1600000000123456789
    assert (root / "d/l").lstat().st_mtime == 77
    assert (root / "d/p").lstat().st_mtime == 79
    assert [(root / name).stat().st_mtime for name in ("d", "d/sub", "e/new")] == [1234, 2345, 5]


def test_times_of_many_directories_in_any_order(root: Path) -> None:
    names = [b"d%d/s%d" % (one, two) for two in range(3) for one in range(400)]
    tops = [folder(b"d%d" % one, mtime=one + 1) for one in range(400)]
    put(root, *tops, *(folder(name, mtime=9) for name in names), *(file(name + b"/f") for name in names))
    assert [(root / f"d{one}").stat().st_mtime for one in range(400)] == list(range(1, 401))
    assert all((root / os.fsdecode(name)).stat().st_mtime == 9 for name in names)


def test_hard_links_take_the_header_of_the_link(root: Path) -> None:
    put(root, file(b"a", b"x", mode=0o600), hardlink(b"b", b"a", mode=0o4711, uid=3, mtime=MTIME + 5))
    status = (root / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o4711, 3, MTIME + 5)
    assert status.st_nlink == 2


# ---- forms -----------------------------------------------------------------------------------------


def test_overlay_with_user_attributes(root: Path) -> None:
    put(root, folder(b"d"), file(b"d/.wh..wh..opq"), form=Form.OVERLAY, userxattr=True)
    assert os.listxattr(root / "d") == ["user.overlay.opaque"]


def test_whiteouts_share_the_inode_of_aufs(root: Path) -> None:
    (root / ".wh..wh.aufs").touch(mode=0o444)
    put(root, file(b"a/.wh.x"), file(b".wh.y"), file(b"a/.wh..wh..opq"), form=Form.AUFS)
    assert (root / ".wh..wh.aufs").stat().st_nlink == 4
    put(root, file(b"y", b"back"), form=Form.AUFS)
    assert sorted(os.listdir(root)) == [".wh..wh.aufs", "a", "y"]


def test_second_layer_over_marks_of_the_first(root: Path) -> None:
    for form in Form:
        branch = root / form.value
        branch.mkdir()
        put(branch, file(b".wh.a"), folder(b"b"), file(b"b/.wh.c"), file(b"d/.wh..wh..opq"), form=form)
        put(branch, folder(b"a"), file(b"a/x"), file(b"b/c", b"new"), file(b".wh.d"), form=form)
        opaque(branch, form, "a")
        assert (branch / "b/c").read_bytes() == b"new"
        assert not (branch / "b/.wh.c").exists()
        deleted(branch, form, "d")


def test_parents_are_inherited_from_the_nearest_lower(root: Path, tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    for lower, number in ((near, 1), (far, 2)):
        (lower / "both").mkdir(parents=True)
        os.setxattr(lower / "both", "user.number", b"%d" % number)
        os.setxattr(lower / "both", "trusted.overlay.opaque", b"y")
        os.chown(lower / "both", number, number)
        (lower / "both").chmod(0o2750 + number)
        os.utime(lower / "both", (number, number))
    (far / "both/deep").mkdir()
    (far / "both/deep").chmod(0o700)
    (near / "cut").touch()
    (far / "cut").mkdir(mode=0o700)
    (near / "link").symlink_to("both")
    put(
        root,
        file(b"both/deep/f"),
        file(b"both/made/.wh.x"),
        file(b"cut/f"),
        file(b"link/f"),
        form=Form.OVERLAY,
        lowers=[near, far],
        owner=(5, 6),
    )
    both = (root / "both").stat()
    assert (stat.S_IMODE(both.st_mode), both.st_uid, both.st_gid, both.st_mtime) == (0o2751, 1, 1, 1)
    assert {name: os.getxattr(root / "both", name) for name in os.listxattr(root / "both")} == {
        "user.number": b"1"
    }
    assert mode(root / "both/deep") == 0o700
    for name in ("both/made", "cut", "link"):
        status = (root / name).lstat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, 5, 6)


@pytest.mark.lane("overlay")
def test_opaque_root(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    for lower, name in ((near, "a"), (far, "b")):
        (lower / name).mkdir(parents=True)
        (lower / name / "lower").touch()
        (lower / "kept").mkdir()
        (lower / "kept" / name).touch()
    with overlay(tmp_path, [near, far]) as (merged, upper):
        subprocess.run(["umount", str(merged)], check=True)  # an upper is not written to while it is in use
        put(
            upper,
            file(b".wh..wh..opq"),
            folder(b"kept"),
            file(b"kept/own"),
            file(b"own"),
            form=Form.OVERLAY,
            lowers=[near, far],
        )
        mount = f"lowerdir={near}:{far},upperdir={upper},workdir={tmp_path / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", mount, "overlay", str(merged)], check=True)
        assert sorted(os.listdir(merged)) == ["kept", "own"]
        assert os.listdir(merged / "kept") == ["own"]


def test_flat_remembers_what_it_wrote_through_links_and_many_directories(root: Path) -> None:
    for number in range(300):
        (root / f"top/d{number}").mkdir(parents=True)
        (root / f"top/d{number}/lower").touch()
    (root / "alias").symlink_to("top")
    own = [file(b"alias/d%d/deep/own" % number) for number in range(300)]
    late = [file(b"top/d%d/deep/late" % number) for number in range(300)]
    put(root, *own, *late, file(b"top/.wh..wh..opq"))
    for number in range(300):
        assert os.listdir(root / f"top/d{number}") == ["deep"]
        assert sorted(os.listdir(root / f"top/d{number}/deep")) == ["late", "own"]


# ---- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mount", "entries", "named"),
    [
        ("size=1m", [file(b"small", b"x"), file(b"large", bytes(2 << 20))], "large"),
        ("nr_inodes=50", [file(b"f%03d" % number) for number in range(100)], "'f0"),
        ("size=1m", [file(b".wh..wh.plnk/1", bytes(2 << 20)), hardlink(b"l", b".wh..wh.plnk/1")], "plnk"),
    ],
    ids=["bytes", "inodes", "stored links"],
)
def test_no_room(mount: str, entries: list[bytes], named: str, tmp_path: Path) -> None:
    world = World(tmp_path / "world")

    def work() -> tuple[str, str]:
        try:
            put(Path("/layer"), *entries)
        except OutOfSpace as error:
            return error.code, str(error)
        return "", ""

    code, message = world.run(work, mount=mount)
    assert code == "out_of_space"
    assert named in message


def test_bombs(root: Path) -> None:
    bomb = gzip.compress(archive(file(b"zeros", bytes(64 << 20))))
    with pytest.raises(OutOfSpace, match="zeros") as raised:
        apply(io.BytesIO(bomb), root, form=Form.FLAT, limits=Limits(expanded_bytes=8 << 20))
    assert raised.value.code == "archive.limit"
    with pytest.raises(InvalidArgument, match="more than 1000 entries") as refused:
        put(root, *[file(b"f%d" % number) for number in range(1001)], limits=Limits(entries=1000))
    assert refused.value.code == "archive.limit"


@pytest.mark.parametrize(
    "entry", [file(b"victim", b"x"), folder(b"victim"), file(b".wh.victim"), file(b".wh.d")]
)
def test_immutable_files(entry: bytes, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/victim").write_bytes(b"kept")
    (root / "victim").write_bytes(b"kept")
    subprocess.run(["chattr", "+i", root / "victim", root / "d/victim"], check=True)
    try:
        with pytest.raises(PermissionDenied, match=r"victim|d'"):
            put(root, entry)
        assert (root / "victim").read_bytes() == (root / "d/victim").read_bytes() == b"kept"
    finally:
        subprocess.run(["chattr", "-i", root / "victim", root / "d/victim"], check=True)


@pytest.mark.parametrize("last", [file(b"good"), file(b"../bad"), hardlink(b"a", b"missing"), b"x" * 512])
def test_no_descriptor_and_no_thread_is_left(last: bytes, root: Path) -> None:
    (root / "before").touch()
    entries = [file(b"d%d/s/f" % number, b"x" * 2000) for number in range(500)] + [
        file(b".wh..wh.plnk/1"),
        last,
    ]
    descriptors, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    try:
        put(root, *entries, lowers=[root], form=Form.OVERLAY)
    except InvalidArgument:
        pass
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_devices_in_a_user_namespace(root: Path, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(archive(device(b"null", 1, 3), file(b"f"), file(b".wh.gone")))
    script = f"""
        from pathlib import Path
        from layerlimit.archive import Form, apply
        with open({str(tmp_path / "layer.tar")!r}, "rb") as stream:
            applied = apply(stream, Path({str(root)!r}), form=Form.OVERLAY, userxattr=True, durable=False)
        print(applied.skipped, *applied.warnings)
    """
    os.chmod(root, 0o777)
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", textwrap.dedent(script)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert re.match(r"1 .*'null'", said)
    deleted(root, Form.OVERLAY, "gone")
    assert sorted(os.listdir(root)) == ["f", "gone"]


@pytest.mark.lane("strace")
@pytest.mark.parametrize("durable", [False, True])
def test_one_sync_for_a_durable_layer(*, durable: bool, root: Path, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(archive(*[file(b"f%d" % number) for number in range(20)]))
    script = f"""
        from pathlib import Path
        from layerlimit.archive import Form, apply
        with open({str(tmp_path / "layer.tar")!r}, "rb") as stream:
            apply(stream, Path({str(root)!r}), form=Form.FLAT, durable={durable})
    """
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync,sync,syncfs,sync_file_range", sys.executable]
    said = subprocess.run(
        [*command, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True
    )
    assert len(re.findall(r"sync\w*\(", said.stderr)) == durable
    assert ("syncfs(" in said.stderr) == durable


@pytest.mark.lane("loop")
def test_a_failed_write_is_told_even_if_another_sync_heard_of_it(tmp_path: Path) -> None:
    """The kernel tells everybody who has the file system open, once, and nobody who opens it later."""
    host, disk = tmp_path / "host", tmp_path / "disk"
    host.mkdir()
    disk.mkdir()
    image, filler = host / "image", host / "filler"
    layer = io.BytesIO(archive(file(b"large", os.urandom(24 << 20))))

    class Stream:
        heard = ""

        def read(self, size: int) -> bytes:
            if layer.tell() >= 20 << 20 and not self.heard:
                large = disk / "layer/large"
                while not (large.exists() and large.stat().st_size >= 12 << 20):
                    time.sleep(0.01)
                try:
                    sync_file_system(disk)
                except OSError as error:
                    self.heard = str(error)
                filler.unlink()  # the rest can be written
            return layer.read(min(size, 1 << 20))

    with ExitStack() as undoing:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", host], check=True)
        undoing.callback(unmount, host)
        image.touch()
        os.truncate(image, 64 << 20)
        plain = ["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", "-N", "64"]
        subprocess.run(["mke2fs", *plain, image], check=True)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        undoing.callback(unmount, disk)
        (disk / "layer").mkdir()
        sync_file_system(disk)
        room = os.statvfs(host)
        filler.write_bytes(os.urandom(room.f_bavail * room.f_frsize - (4 << 20)))
        stream = Stream()
        with pytest.raises(Error, match="to disk"):
            apply(stream, disk / "layer", form=Form.OVERLAY)
        assert "syncfs" in stream.heard


@pytest.mark.parametrize("core", ["native", "python"])
def test_the_times_of_a_directory_do_not_go_to_what_a_link_in_its_place_leads_to(
    core: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if core == "python":
        monkeypatch.setattr(native, "core", None)
    layer = archive(folder(b"a"), symlink(b"a", b"x"), file(b"a/f", b"through it"))
    apply(io.BytesIO(layer), root, form=Form.OVERLAY, durable=False)
    assert (root / "x/f").read_bytes() == b"through it"
    assert (root / "x").stat().st_mtime > MTIME + 1


# ---- others who change the tree meanwhile ----------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_EXCHANGE = 2


@pytest.fixture
def swapped(tmp_path: Path) -> Iterator[World]:
    """A world in whose layer somebody keeps swapping the directory ``d`` for a link to ``/dir``."""
    world = World(tmp_path / "world")
    (world.layer / "d/sub").mkdir(parents=True)
    (world.layer / "evil").symlink_to("/dir")
    pid = os.fork()
    if pid == 0:
        one, two = os.fsencode(world.layer / "d"), os.fsencode(world.layer / "evil")
        while os.getppid() != 1:
            _libc.renameat2(-100, one, -100, two, _RENAME_EXCHANGE)
        os._exit(0)
    try:
        yield world
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


SWAP = archive(*[each for n in range(300) for each in (file(b"d/f%d" % n, b"x"), file(b"d/sub/g%d" % n))])


@pytest.mark.parametrize("form", Form)
def test_swapped_directories(swapped: World, form: Form) -> None:
    for _ in range(2):
        swapped.run(lambda: outcome(SWAP, form, None))
        assert swapped.intact


def test_swapping_works_on_an_extractor_that_trusts(swapped: World) -> None:
    for _ in range(100):
        swapped.run(lambda: naive.extract(SWAP, "/layer"), proc=False)
        if not swapped.intact:
            return
    raise AssertionError("the attack never works")


def test_a_link_to_what_was_there_before_leaves_its_inode_alone(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.write_text("shared")
    other.chmod(0o640)
    os.link(other, root / "old")
    before = os.stat(other)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("new")
        entry.type, entry.linkname, entry.mode, entry.mtime, entry.uid = tarfile.LNKTYPE, "old", 0o777, 5, 7
        tar.addfile(entry)
    archive.seek(0)
    apply(archive, root, form=Form.OVERLAY)
    after = os.stat(other)
    assert os.path.samefile(root / "new", other)
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime_ns,
    )


def test_a_whiteout_of_the_longest_name(tmp_path: Path) -> None:
    (tmp_path / ("n" * 255)).touch()
    apply(io.BytesIO(archive(file(b".wh." + b"n" * 255))), tmp_path, form=Form.FLAT)
    assert os.listdir(tmp_path) == []
    with pytest.raises(InvalidArgument):
        apply(io.BytesIO(archive(file(b".wh." + b"n" * 256))), tmp_path, form=Form.FLAT)


@pytest.mark.lane("root")
@pytest.mark.parametrize("form", Form)
def test_a_whiteout_below_a_file_deletes_nothing(tmp_path: Path, form: Form) -> None:
    """umoci writes such whiteouts for what was in a directory that became a file."""
    applied = put(tmp_path, file(b"f", b"x"), file(b"f/.wh.a"), file(b"f/d/.wh..wh..opq"), form=form)
    assert applied.entries == 3
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"x"
