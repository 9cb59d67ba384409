"""Sparse copies, space, durability, locks, flags, freezing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit.linux import files
from layerlimit.linux.mount import FsContext, unmount

MIB = 1 << 20


def copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        files.copy_sparse(reader.fileno(), writer.fileno(), source.stat().st_size)


@pytest.mark.parametrize(
    "extents",
    [[], [0], [64], [0, 64, 127], [5, 6, 100]],
    ids=["hole", "start", "middle", "start-middle-end", "odd"],
)
def test_holes_stay_holes(tmp_path: Path, extents: list[int]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for extent in extents:
            file.seek(extent * MIB // 2)
            file.write(b"data%d" % extent * 100)
        file.truncate(64 * MIB)
    os.sync()
    copy(source, target)
    assert target.stat().st_size == 64 * MIB
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks


def test_between_file_systems(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(3 * MIB)
        file.write(os.urandom(2 * MIB + 17))
        file.truncate(9 * MIB)
    with source.open("rb") as reader, open("/dev/shm", "rb", opener=unnamed) as writer:
        files.copy_sparse(reader.fileno(), writer.fileno(), 9 * MIB)
        assert os.pread(writer.fileno(), 10 * MIB, 0) == source.read_bytes()


def unnamed(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_TMPFILE)


def test_a_source_that_shrank_is_an_error_not_a_short_copy(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)
    with source.open("rb") as reader, (tmp_path / "target").open("xb") as writer:
        os.truncate(source, 10)
        files.copy_sparse(reader.fileno(), writer.fileno(), 100)
    assert (tmp_path / "target").read_bytes() == b"x" * 10 + bytes(90)  # the rest is a hole of the source


def test_allocated_space_is_allocated_and_keeps_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    with path.open("r+b") as file:
        files.allocate(file.fileno(), 2 * MIB, path)
    assert path.stat().st_blocks * 512 >= 2 * MIB
    assert path.read_bytes() == b"kept".ljust(2 * MIB, b"\0")
    with path.open("rb") as file, pytest.raises(OSError, match="fallocate") as caught:
        files.allocate(file.fileno(), 4 * MIB, path)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, os.fspath(path))


def test_syncing() -> None:
    files.sync_directory(Path("/tmp"))
    files.sync_file_system(Path("/tmp"))
    with pytest.raises(NotADirectoryError):
        files.sync_directory(Path("/etc/passwd"))


@pytest.mark.parametrize("unique", [False, True])
def test_a_file_is_replaced_whole(tmp_path: Path, unique: bool) -> None:
    path = tmp_path / "file"
    staging = tmp_path / "staging"
    staging.mkdir()
    files.write_durably(path, b"one", unique=unique)
    with path.open("rb") as old:
        files.write_durably(path, b"two", staging=staging, unique=unique)
        assert old.read() == b"one"
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [path, staging]
    assert list(staging.iterdir()) == []


@pytest.mark.lane("root")
def test_a_file_is_not_replaced_by_a_part(tmp_path: Path) -> None:
    with FsContext("tmpfs") as context:
        context.set_string("size", f"{3 * 4096}")
        context.create()
        with context.mount() as mounted:
            mounted.attach(tmp_path)
    try:
        path = tmp_path / "file"
        files.write_durably(path, b"old")
        with pytest.raises(OSError, match="No space left"):
            files.write_durably(path, b"n" * 3 * 4096)
        assert path.read_bytes() == b"old"
    finally:
        unmount(tmp_path)


def test_a_staged_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / ".file.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        files.write_durably(tmp_path / "file", b"data")
    assert victim.read_text() == "kept"


@pytest.mark.lane("root")
def test_an_immutable_directory_takes_no_files(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    assert files.set_immutable(directory, True)
    try:
        with pytest.raises(PermissionError):
            (directory / "file").touch()
    finally:
        assert files.set_immutable(directory, False)
    (directory / "file").touch()
    assert files.set_immutable(directory, False)


@pytest.mark.lane("root")
def test_flags_that_keep_a_file_from_being_removed_are_cleared(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    subprocess.run(["chattr", "+ia", path], check=True)
    with pytest.raises(PermissionError):
        path.unlink()
    assert files.clear_flags(path)
    path.unlink()


def test_file_systems_without_flags_say_so() -> None:
    assert not files.set_immutable(Path("/proc"), True)
    assert not files.keep_apart(Path("/proc"))
    with pytest.raises(OSError, match="symbolic links"):
        files.clear_flags(Path("/proc/self/exe"))


def test_two_names_are_exchanged(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.mkdir()
    files.exchange(one, other)
    assert one.is_dir()
    assert other.read_text() == "1"
    with pytest.raises(FileNotFoundError, match="renameat2"):
        files.exchange(one, tmp_path / "none")


def test_byte_locks_hold_between_open_files(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open("r+b") as one, path.open("r+b") as two, path.open("r+b") as three:
        assert files.lock_ranges(one.fileno(), [0, 7], exclusive=True)
        assert files.lock_ranges(two.fileno(), [1, 8], exclusive=True, wait=False)
        assert not files.lock_ranges(two.fileno(), [7], exclusive=True, wait=False)
        assert not files.lock_ranges(two.fileno(), [0], exclusive=False, wait=False)
        assert files.lock_ranges(two.fileno(), [9], exclusive=False, wait=False)
        assert files.lock_ranges(three.fileno(), [9], exclusive=False, wait=False)
        got = threading.Event()

        def wait() -> None:
            files.lock_ranges(three.fileno(), [7], exclusive=True)
            got.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not got.wait(0.05)
        one.close()
        waiter.join()
        assert got.is_set()


def test_byte_locks_do_not_go_with_another_open_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open("r+b") as one, path.open("r+b") as two:
        assert files.lock_ranges(one.fileno(), [0], exclusive=True)
        path.open("rb").close()  # which is where POSIX locks would be lost
        assert not files.lock_ranges(two.fileno(), [0], exclusive=True, wait=False)


def test_flock_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as one, path.open() as two:
        assert files.try_flock(one.fileno(), exclusive=False)
        assert files.try_flock(two.fileno(), exclusive=False)
        assert not files.try_flock(two.fileno())
        fcntl.flock(one, fcntl.LOCK_UN)
        assert files.try_flock(two.fileno())


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 of its own, mounted."""
    image, target = tmp_path / "image", tmp_path / "target"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(target)], check=True)
    yield target
    unmount(target)


@pytest.mark.lane("root", "loop")
def test_a_frozen_file_system_makes_writers_wait(ext4: Path) -> None:
    written = threading.Event()

    def write() -> None:
        (ext4 / "file").write_text("x")
        written.set()

    writer = threading.Thread(target=write)
    with files.frozen(ext4):
        writer.start()
        assert not written.wait(0.1)
    writer.join()
    assert (ext4 / "file").read_text() == "x"


@pytest.mark.lane("root", "loop")
def test_it_thaws_when_the_block_fails(ext4: Path) -> None:
    with pytest.raises(KeyError), files.frozen(ext4):
        raise KeyError
    (ext4 / "file").touch()


@pytest.mark.lane("root")
def test_a_resize_error_names_the_call_and_the_mount(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with FsContext("tmpfs") as context:
        context.create()
        with context.mount() as mounted:
            mounted.attach(target)
    try:
        with pytest.raises(OSError, match="EXT4_IOC_RESIZE_FS") as caught:
            files.ext4_resize(target, 1)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOTTY, os.fspath(target))
    finally:
        unmount(target)


@pytest.mark.lane("root", "loop", "resource")
def test_a_mounted_ext4_grows(ext4: Path) -> None:
    before = os.statvfs(ext4)
    with open(ext4.parent / "image", "r+b") as image:
        image.truncate(32 * MIB)
    device = os.stat(ext4).st_dev
    name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    subprocess.run(["losetup", "-c", f"/dev/{name}"], check=True)
    files.ext4_resize(ext4, 32 * MIB // before.f_frsize)
    assert os.statvfs(ext4).f_blocks > before.f_blocks * 3 // 2
