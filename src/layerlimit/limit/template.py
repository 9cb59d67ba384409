"""Templates: file systems made once per exact size, from which every image is cloned.

    templates/<key>.ext4              a clean file system with upper/ and work/, verified by statfs
    templates/<key>.ext4.<pid>-*.tmp  one being made, or left by a crash; never cloned, swept

A template is verified while nobody can see it, on a detached mount, and renamed into place when it is
durable; two processes that make the same one both succeed. Templates are a cache: removing one is safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerlimit.errors import Corrupt, from_os_error
from layerlimit.limit import ext4
from layerlimit.limit.protocol import Limit
from layerlimit.linux import files, loop
from layerlimit.linux.mount import FsContext
from layerlimit.linux.statfs import statfs

KEEP = 32  # templates that stay cached; the longest unused ones go
BALLAST = ".inodes"  # files that use up inodes beyond the limit, see fill_inodes
_VERSION = 2
_WAITS, _WAIT_SECONDS = 400, 0.005
_TOLERANCE = 0.0095  # of the bytes asked; the promise is 1 %


@dataclass(frozen=True, slots=True)
class Template:
    """An open template; ``free_blocks`` and ``free_inodes`` are those of a layer that holds nothing yet."""

    fd: int
    size: int
    free_blocks: int
    free_inodes: int


def mount_options(limit: Limit) -> tuple[str, ...]:
    """How ext4 is mounted; ``noinit_itable`` leaves inode tables holes, also in a reserved image."""
    return ("noinit_itable",) if limit.reserve else ("noinit_itable", "discard")


@contextlib.contextmanager
def detached(image: Path, limit: Limit, *, block_size: int = ext4.BLOCK) -> Iterator[int]:
    """The root of ``image`` as an O_PATH descriptor on a mount that nobody else can see.

    The caller makes sure that the image is attached nowhere. It is unmounted at the end, and by the
    kernel when the process dies.
    """
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        device = loop.attach(fd, image, block_size=block_size)
    finally:
        os.close(fd)
    with device, FsContext("ext4") as context:
        context.set_string("source", device.path)
        context.set_string("errors", "remount-ro")
        for option in mount_options(limit):
            context.set_flag(option)
        context.create()
        with context.mount() as mount:
            yield mount.fd
    _wait_until_free(device.path, image)


def sync_mounted(device: Path) -> None:
    """syncfs of what is mounted from a device, wherever that is; read-only there is nothing to write."""
    with FsContext("ext4") as context:
        context.set_string("source", device)
        context.set_string("errors", "remount-ro")
        try:
            context.create()
        except OSError as error:
            if error.errno == errno.EBUSY:
                return
            raise
        with context.mount() as mount:
            files.sync_file_system(Path(f"/proc/self/fd/{mount.fd}"))


def _wait_until_free(device: Path, image: Path) -> None:
    """Wait for the device to let go of the image, which only then is whole.

    A process that another thread is just starting has copies of our descriptors until it runs its program.
    """
    for _ in range(_WAITS):
        try:
            backing = Path(f"/sys/block/{device.name}/loop/backing_file").read_bytes().rstrip(b"\n")
        except OSError:
            return
        if backing != os.fsencode(image.resolve()):
            return
        time.sleep(_WAIT_SECONDS)


def fill_inodes(root: int, inodes: int, per_group: int) -> int:
    """Use up what a file system has beyond ``inodes`` and one more group, with empty files out of sight.

    A large image with few inodes gets at least 16 in every block group from mke2fs. Files of an earlier,
    lower limit that are too many now go. Returns how many more inodes are used up than before.
    """
    spare = statfs(root).files - ext4.SPARE_INODES - inodes
    wanted = spare - 1 if spare > per_group else 0
    there = BALLAST in os.listdir(f"/proc/self/fd/{root}")
    if not wanted and not there:
        return 0
    if not there:
        os.mkdir(BALLAST, 0o700, dir_fd=root)
    ballast = os.open(BALLAST, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        have = len(os.listdir(ballast))
        for number in range(have, wanted):
            os.close(os.open(f"{number}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, dir_fd=ballast))
        for number in reversed(range(wanted, have)):
            os.unlink(f"{number}", dir_fd=ballast)
    finally:
        os.close(ballast)
    if not wanted:
        os.rmdir(BALLAST, dir_fd=root)
    return wanted - have + bool(wanted) - there


def free_when_empty(root: int) -> tuple[int, int]:
    """Free blocks and inodes of the mounted image, and what upper/ holds, hard links once."""
    space = statfs(root)
    upper = f"/proc/self/fd/{root}/upper"
    seen = {os.lstat(upper).st_ino}
    blocks = 0
    for where, directories, names in os.walk(upper):
        for name in (*directories, *names):
            status = os.lstat(os.path.join(where, name))
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                blocks += status.st_blocks
    return space.bfree + blocks * 512 // space.frsize, space.ffree + len(seen) - 1


class Templates:
    """The cache in one directory. Any number of processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def open(self, limit: Limit, owner: tuple[int, int]) -> Iterator[Template]:
        """The template for ``limit``, made if it is not there; ``upper/`` belongs to ``owner``."""
        kind = "n" if limit.ephemeral else "j"
        name = f"{limit.bytes}-{limit.inodes or 0}-{kind}-{owner[0]}.{owner[1]}-v{_VERSION}.ext4"
        path = self._directory / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._make(path, limit, owner)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            block = ext4.read_superblock(fd, path)
            os.utime(fd)
            yield Template(fd, os.fstat(fd).st_size, block.free_blocks, block.free_inodes)
        finally:
            os.close(fd)

    def _make(self, path: Path, limit: Limit, owner: tuple[int, int]) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        staged = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
        try:
            size = ext4.image_size(limit)
            for _ in range(5):
                staged.unlink(missing_ok=True)
                ext4.make(staged, size, limit)
                error = self._populate(staged, limit, owner)
                if error == 0:
                    break
                size += error
            else:
                raise Corrupt(
                    f"no file system could be made that leaves {limit.bytes} bytes", code="image.size"
                )
            fd = os.open(staged, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not ext4.read_superblock(fd, staged).clean:
                    raise Corrupt(f"template {staged} was not unmounted cleanly", code="image.unclean")
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(staged, path)
            files.sync_directory(self._directory)
        except OSError as error:
            raise from_os_error(error, f"make a file system of {limit.bytes} bytes") from error
        finally:
            staged.unlink(missing_ok=True)
        self._forget_old()

    def _populate(self, image: Path, limit: Limit, owner: tuple[int, int]) -> int:
        """Make the directories; the number of bytes by which the image is too small, 0 when it fits."""
        with detached(image, limit) as root:
            os.rmdir("lost+found", dir_fd=root)
            for name, mode in (("upper", 0o755), ("work", 0o711), ("work/work", 0o000)):
                os.mkdir(name, dir_fd=root)
                os.chmod(name, mode, dir_fd=root)
            os.chown("upper", *owner, dir_fd=root)
            if limit.inodes is not None:
                groups = -(-os.stat(image).st_size // ext4.GROUP)
                fill_inodes(root, limit.inodes, ext4.inodes_each(limit.inodes, groups))
            space = statfs(root)
        excess = space.bavail * space.frsize - limit.bytes
        if 0 <= excess <= limit.bytes * _TOLERANCE:
            return 0
        step = -excess + int(limit.bytes * _TOLERANCE / 2)
        return -(-step // ext4.BLOCK) * ext4.BLOCK

    def _forget_old(self) -> None:
        with os.scandir(self._directory) as entries:
            ages = sorted(
                (entry.stat().st_mtime_ns, entry.path) for entry in entries if entry.name.endswith(".ext4")
            )
        for _, path in ages[:-KEEP]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def sweep(self) -> None:
        """Remove what a crash left half-made: staged files whose process is gone."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(".tmp"):
                    pid = entry.name.removesuffix(".tmp").rpartition(".")[2].partition("-")[0]
                    if not pid.isdigit() or not os.path.exists(f"/proc/{pid}"):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(entry.path)
