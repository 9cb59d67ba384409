"""Files: hole-aware copies and clones, space, durability, locks, freezing.

Each function is one kernel facility. Errors are :class:`OSError` with errno and the path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from layerlimit.linux.libc import AT_FDCWD, check, libc, path_bytes

FICLONE = 0x40049409
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
EXT4_IOC_RESIZE_FS = 0x40086610
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
FS_TOPDIR_FL = 0x20000

_FLOCK = struct.Struct("=hh4xqqi4x")  # struct flock of x86-64, arm64 and every other LP64 Linux

_fallocate = libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_RENAME_EXCHANGE = 2
_SMALL = 1 << 14
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_renameat2 = libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_syncfs = libc.syncfs
_syncfs.argtypes = [ctypes.c_int]


def copy_sparse(source: int, target: int, size: int) -> None:
    """Copy the data extents of ``source`` to the empty file ``target`` and set its size; holes stay holes.

    Uses a reflink where the file system has one, else SEEK_DATA/SEEK_HOLE with copy_file_range.
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
            raise
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but hole up to the end
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_extent(source, target, start, end)
        offset = end


def _copy_extent(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            copied = os.copy_file_range(source, target, end - start, start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            copied = os.pwrite(target, os.pread(source, min(end - start, 1 << 20), start), start)
        if copied == 0:
            raise OSError(errno.EIO, "copy_file_range: source is shorter than its extents")
        start += copied


def allocate(fd: int, size: int, path: Path) -> None:
    """Allocate the first ``size`` bytes on disk, keeping what is there (fallocate, mode 0)."""
    check(_fallocate(fd, 0, 0, size), "fallocate", path)


@functools.lru_cache(maxsize=1024)
def below(directory: Path, name: str) -> Path:
    """``directory / name``. Those in use are kept: to join paths costs more than most calls of the kernel."""
    return directory / name


def read_whole(path: str | Path) -> bytes:
    """What is in a small file, in few calls."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(fd, _SMALL)
        while len(content) % _SMALL == 0 and (more := os.read(fd, _SMALL)):
            content += more
        return content
    finally:
        os.close(fd)


def write_whole(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``: on a disk that runs full the kernel takes a part, and refuses the rest."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def start_writing(fd: int) -> None:
    """Begin to write a file out, without waiting (sync_file_range). A wish: whoever needs it durable syncs.

    What is to be synced together gets its blocks before the first sync, which then takes all into one commit.
    """
    _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: str | Path) -> None:
    """Make the content of a file durable."""
    _sync(path, os.O_NOFOLLOW)


def _sync(path: str | Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: Path) -> None:
    """syncfs: write everything of the file system that holds ``path``, and learn of errors."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_file_system_of(fd, path)
    finally:
        os.close(fd)


def sync_file_system_of(fd: int, path: Path) -> None:
    """The same, by a descriptor of ``path``, which is told of every write that failed since it was opened.

    One that is opened for the sync is told of what nobody has heard yet. Where others sync as well, be they
    of this process, open it before the first write.
    """
    check(_syncfs(fd), "syncfs", path)


def write_durably(path: Path, data: bytes, *, staging: Path | None = None, unique: bool = False) -> None:
    """Replace ``path`` by ``data``: staged beside it (or in ``staging``), synced, renamed, directory synced.

    After a crash the file has the old content or the new; a staged ``.<name>.new`` may remain. Callers
    that do not lock against each other want ``unique``, which adds the process to the staged name.
    """
    suffix = f".{os.getpid()}-{threading.get_native_id()}" if unique else ""
    new = (staging or path.parent) / f".{path.name}{suffix}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_whole(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    sync_directory(path.parent)


def set_immutable(directory: str | Path, immutable: bool) -> bool:
    """Set or clear the immutable flag of a directory (``chattr +i``): then not even root makes files in it.

    False where the file system, or the lack of CAP_LINUX_IMMUTABLE, does not allow it.
    """
    return _change_flags(
        directory, os.O_DIRECTORY, set_=FS_IMMUTABLE_FL * immutable, clear=FS_IMMUTABLE_FL * (not immutable)
    )


def keep_apart(directory: str | Path) -> bool:
    """Say of a directory that those made in it have nothing to do with each other (``chattr +T``).

    ext4 then gives each of them, and what is made in it, an emptier part of the disk instead of one beside
    its siblings, and does not search what they fill or just left. False where there is no such flag.
    """
    return _change_flags(directory, os.O_DIRECTORY, set_=FS_TOPDIR_FL, clear=0)


def clear_flags(path: str | Path) -> bool:
    """Clear the immutable and append-only flags of a file or directory, so that it can be deleted."""
    return _change_flags(path, os.O_NONBLOCK, set_=0, clear=FS_IMMUTABLE_FL | FS_APPEND_FL)


def _change_flags(path: str | Path, how: int, *, set_: int, clear: int) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | how)
    try:
        flags = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))[0]
        wanted = flags & ~clear | set_
        if wanted != flags:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", wanted))
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.ENOSYS):
            raise
        return False
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> None:
    """Exchange two names of one file system in one step (renameat2, RENAME_EXCHANGE)."""
    result = _renameat2(AT_FDCWD, path_bytes(one), AT_FDCWD, path_bytes(other), _RENAME_EXCHANGE)
    check(result, "renameat2", one)


def lock_ranges(fd: int, offsets: list[int], *, exclusive: bool, wait: bool = True) -> bool:
    """Lock one byte at each offset for this open file description; they go when ``fd`` is closed.

    Open-file-description locks (``fcntl(2)``): they hold between threads as well as processes, as
    long as each opens the file itself. Returns False when ``wait`` is False and one is taken; those
    already taken then stay until ``fd`` is closed.
    """
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    for offset in offsets:
        try:
            fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
        except OSError as error:
            if not wait and error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
    return True


def try_flock(fd: int, *, exclusive: bool = True) -> bool:
    """Take the flock of an open file without waiting; False when somebody else has it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Hold the file system of ``path`` frozen (FIFREEZE): every writer waits until the block ends.

    A process killed inside the block leaves it frozen; keep the block short.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)


def ext4_resize(mount: Path, blocks: int) -> None:
    """Grow a mounted ext4 to ``blocks`` file-system blocks; EPERM without CAP_SYS_RESOURCE."""
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
    except OSError as error:
        text = f"EXT4_IOC_RESIZE_FS: {os.strerror(error.errno or 0)}"
        raise OSError(error.errno, text, str(mount)) from None
    finally:
        os.close(fd)
