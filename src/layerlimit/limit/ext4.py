"""ext4 as a limit: how large an image must be, how it is made, read, repaired and grown.

Facts (measured, Linux 6.1 and 6.18, e2fsprogs 1.47): with ``meta_bg,^resize_inode`` an idle image costs
~150 KiB up to 1 GiB and the kernel can still grow it online; with a 4 MiB journal and
``errors=remount-ro`` a full host costs no synced file. ext4 keeps back 2 % of the clusters, at most
4096 (``ext4_calculate_reserved`` in fs/ext4/super.c), which the size must make up for.

Superblock layout: ``struct ext4_super_block`` in fs/ext4/ext4.h, at byte 1024.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from layerlimit.errors import Corrupt, InvalidArgument, NotSupported, OutOfSpace
from layerlimit.limit.protocol import MIB, Limit

BLOCK = 4096
GROUP = 32768 * BLOCK
INODE_SIZE = 256
BYTES_PER_INODE = 16384
JOURNAL = 4 * MIB
REPAIR_BYTES = 2 * JOURNAL  # on the host: what a replay may write where the image has holes
MIN_BYTES = 4 * MIB  # below this mke2fs finds no room for the journal
SPARE_INODES = 18  # 10 that ext4 keeps, the image's own directories, and what a union makes in them (AUFS: 4)

_FEATURES = "^resize_inode,meta_bg,metadata_csum,metadata_csum_seed,64bit,extent,flex_bg"
_SUPER_AT = 1024
_SUPER_SIZE = 1024
_MAGIC = 0xEF53
_STATE_VALID = 1
_INCOMPAT_RECOVER = 0x4
_PROGRAM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields of a superblock that we decide by; ``free`` counts are exact on a clean file system."""

    block_size: int
    blocks: int
    free_blocks: int
    inodes: int
    free_inodes: int
    inodes_per_group: int
    uuid: str
    clean: bool


def read_superblock(fd: int, image: Path) -> Superblock:
    """Read and check the superblock of an open image; Corrupt when it is not ext4 or is cut off."""
    raw = os.pread(fd, _SUPER_SIZE, _SUPER_AT)
    if len(raw) < _SUPER_SIZE or struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC:
        raise Corrupt(
            f"{image} holds no ext4 file system",
            hint="it was overwritten or cut; restore it from a backup, or remove the layer",
            code="image.magic",
        )
    inodes, low, _, free_low, free_inodes, _, log_size = struct.unpack_from("<7I", raw, 0)
    (inodes_per_group,) = struct.unpack_from("<I", raw, 0x28)
    state, _ = struct.unpack_from("<2H", raw, 0x3A)
    (incompat,) = struct.unpack_from("<I", raw, 0x60)
    high, _, free_high = struct.unpack_from("<3I", raw, 0x150) if incompat & 0x80 else (0, 0, 0)
    block_size = 1024 << min(log_size, 6)
    blocks = high << 32 | low
    size = os.lseek(fd, 0, os.SEEK_END)  # of a device, too
    if blocks * block_size > size:
        raise Corrupt(
            f"{image} is {size} bytes long but its file system has {blocks * block_size}",
            hint="it was truncated; restore it from a backup, or remove the layer",
            code="image.truncated",
        )
    clean = bool(state & _STATE_VALID) and state & 2 == 0 and not incompat & _INCOMPAT_RECOVER
    free = free_high << 32 | free_low
    uuid = raw[0x68:0x78].hex()
    return Superblock(block_size, blocks, free, inodes, free_inodes, inodes_per_group, uuid, clean)


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


def write_uuid(fd: int, uuid: bytes) -> None:
    """Give a template's clone its own UUID; ``metadata_csum_seed`` keeps every other checksum valid."""
    raw = bytearray(os.pread(fd, _SUPER_SIZE, _SUPER_AT))
    raw[0x68:0x78] = uuid
    crc = 0xFFFFFFFF
    for byte in raw[:0x3FC]:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    struct.pack_into("<I", raw, 0x3FC, crc)
    os.pwrite(fd, raw, _SUPER_AT)


def image_size(limit: Limit, *, inodes_per_group: int = 0) -> int:
    """Bytes of an image whose fresh file system leaves ``limit.bytes`` available, to within 1 %.

    ``inodes_per_group`` is that of a file system that grows; else it follows from the limit.
    """
    journal = 0 if limit.ephemeral else JOURNAL
    wanted = limit.bytes + journal + 64 * 1024
    if not inodes_per_group and limit.inodes is None:
        share = 1 - INODE_SIZE / BYTES_PER_INODE - 0.0002
        kept = min(0.0206 * wanted / share, 16 * MIB)
        return _round_up(int((wanted + kept) / share) + 128 * 1024, BLOCK)
    size = wanted
    for _ in range(4):  # the tables grow with the image and the image with its tables
        groups = -(-size // GROUP)
        per_group = inodes_per_group or inodes_each(limit.inodes or 0, groups)
        tables = groups * per_group * INODE_SIZE
        kept = min(0.0206 * (size - tables), 16 * MIB)
        size = int((wanted + kept + tables) / 0.9998) + 128 * 1024
    return _round_up(size, BLOCK)


def inodes_each(inodes: int, groups: int) -> int:
    """Inodes per block group that mke2fs makes for a total of ``inodes``: whole blocks of 16."""
    return max(_round_up(-(-(inodes + SPARE_INODES) // groups), BLOCK // INODE_SIZE), 16)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def program(name: str) -> str:
    """The absolute path of an e2fsprogs program of the host; NotSupported when it is missing."""
    path = shutil.which(name, path=_PROGRAM_PATH)
    if path is None:
        raise NotSupported(f"{name} is not installed", hint="install e2fsprogs", code="program.missing")
    return path


def _run(name: str, *arguments: str, keep: int | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a program; with ``keep`` it inherits that descriptor, and the lock on it outlives us."""
    return subprocess.run(
        [program(name), *arguments],
        pass_fds=[] if keep is None else [keep],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            "PATH": _PROGRAM_PATH,
            "LC_ALL": "C",
            "E2FSCK_CONFIG": "/dev/null",
            "MKE2FS_CONFIG": "/dev/null",
        },
        check=False,
    )


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def make(image: Path, size: int, limit: Limit) -> None:
    """mke2fs ``size`` bytes into the new file ``image``; InvalidArgument when ext4 cannot be that."""
    count = ["-i", str(BYTES_PER_INODE)] if limit.inodes is None else ["-N", str(limit.inodes + SPARE_INODES)]
    journal = ["-O", "^has_journal"] if limit.ephemeral else ["-O", "has_journal", "-J", "size=4"]
    with open(image, "xb") as file:
        file.truncate(size)
    done = _run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-I", str(INODE_SIZE), "-m", "0",
        "-O", _FEATURES, *journal, *count,
        "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", str(image),
    )  # fmt: skip
    if done.returncode:
        cause = _last_line(done.stdout)
        kind = OutOfSpace if "No space" in cause else InvalidArgument
        raise kind(f"cannot make a file system for {limit}: {cause}", code="image.mkfs")


def repair(image: Path, lock: int) -> bool:
    """``e2fsck -p`` an unattached image; True when it changed something. Corrupt when it refuses.

    The image is kept either way. ``lock`` is the descriptor with the image's flock: the program keeps it,
    so that nobody attaches the image while it works, should we be killed. OutOfSpace, with the image as it
    was, while the disk below it has no room: e2fsck cannot fill holes then, and what it leaves may be worse.
    """
    space = os.statvfs(image.parent)
    free = space.f_bavail * space.f_frsize
    if free < REPAIR_BYTES:
        raise OutOfSpace(
            f"{image} needs a repair, and the disk has only {free} bytes free",
            hint=f"free {REPAIR_BYTES} bytes (8 MiB) and mount it again, which repairs it",
            code="host.full",
        )
    return _fsck(image, lock, "-p")


def damage(image: Path) -> str:
    """What ``e2fsck -n`` finds wrong with an unattached image, ``""`` when it is whole; changes nothing."""
    done = _run("e2fsck", "-f", "-n", str(image))
    return "" if done.returncode == 0 else _last_line(done.stdout)


def _fsck(image: Path, lock: int, *options: str) -> bool:
    done = _run("e2fsck", *options, str(image), keep=lock)
    if done.returncode >= 4 or done.returncode < 0:
        raise Corrupt(
            f"{image} cannot be repaired without a person: {_last_line(done.stdout)}",
            hint=f"look at it with 'e2fsck -fn {image}'; it is kept as it is",
            code="image.unrepairable",
        )
    return done.returncode != 0


def grow(image: Path, lock: int, blocks: int) -> None:
    """Grow the file system of an unattached image that already has the length; crash-safe by repetition.

    ``lock`` as for :func:`repair`.
    """
    _fsck(image, lock, "-f", "-p")
    done = _run("resize2fs", str(image), str(blocks), keep=lock)
    if done.returncode:
        raise Corrupt(
            f"{image} cannot be grown: {_last_line(done.stdout)}",
            hint=f"check it with 'e2fsck -fn {image}'; it is kept as it is",
            code="image.grow",
        )
