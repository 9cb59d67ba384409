"""statfs(2): the type of a file system and its room. :func:`os.statvfs` gives no type."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Final

from layerlimit.linux.libc import check, libc, path_bytes

AUFS_MAGIC: Final = 0x61756673
BTRFS_MAGIC: Final = 0x9123683E
ECRYPTFS_MAGIC: Final = 0xF15F
EROFS_MAGIC: Final = 0xE0F5E1E2
EXT4_MAGIC: Final = 0xEF53
FUSE_MAGIC: Final = 0x65735546
NFS_MAGIC: Final = 0x6969
OVERLAY_MAGIC: Final = 0x794C7630
RAMFS_MAGIC: Final = 0x858458F6
SQUASHFS_MAGIC: Final = 0x73717368
TMPFS_MAGIC: Final = 0x01021994
XFS_MAGIC: Final = 0x58465342
ZFS_MAGIC: Final = 0x2FC12FC1

NAMES: Final[dict[int, str]] = {
    AUFS_MAGIC: "aufs",
    BTRFS_MAGIC: "btrfs",
    ECRYPTFS_MAGIC: "ecryptfs",
    EROFS_MAGIC: "erofs",
    EXT4_MAGIC: "ext4",  # ext2 and ext3 share it
    FUSE_MAGIC: "fuse",
    NFS_MAGIC: "nfs",
    OVERLAY_MAGIC: "overlay",
    RAMFS_MAGIC: "ramfs",
    SQUASHFS_MAGIC: "squashfs",
    TMPFS_MAGIC: "tmpfs",
    XFS_MAGIC: "xfs",
    ZFS_MAGIC: "zfs",
}

ST_RDONLY: Final = 1


class _Statfs(ctypes.Structure):  # the 64-bit layout of asm-generic/statfs.h
    _fields_ = (
        ("type", ctypes.c_ulong),
        ("bsize", ctypes.c_long),
        ("blocks", ctypes.c_uint64),
        ("bfree", ctypes.c_uint64),
        ("bavail", ctypes.c_uint64),
        ("files", ctypes.c_uint64),
        ("ffree", ctypes.c_uint64),
        ("fsid", ctypes.c_int * 2),
        ("namelen", ctypes.c_long),
        ("frsize", ctypes.c_long),
        ("flags", ctypes.c_long),
        ("spare", ctypes.c_long * 4),
    )


libc.statfs.argtypes = (ctypes.c_char_p, ctypes.POINTER(_Statfs))
libc.fstatfs.argtypes = (ctypes.c_int, ctypes.POINTER(_Statfs))


@dataclass(frozen=True, slots=True)
class Statfs:
    """A file system's type and room; ``blocks``, ``bfree`` and ``bavail`` count units of ``frsize`` bytes."""

    type: int
    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    flags: int

    @property
    def name(self) -> str:
        """The type's usual name, or its magic number in hexadecimal."""
        return NAMES.get(self.type, f"0x{self.type:x}")

    @property
    def read_only(self) -> bool:
        """Whether the mount or the file system under it is read-only."""
        return bool(self.flags & ST_RDONLY)


def statfs(path: str | bytes | os.PathLike[str] | int) -> Statfs:
    """statfs(2) of the file system ``path`` (or an open descriptor) lies on; O(1), whatever its size."""
    buffer = _Statfs()
    if isinstance(path, int):
        check(libc.fstatfs(path, ctypes.byref(buffer)), "fstatfs")
    else:
        check(libc.statfs(path_bytes(path), ctypes.byref(buffer)), "statfs", path)
    return Statfs(
        type=buffer.type,
        bsize=buffer.bsize,
        frsize=buffer.frsize or buffer.bsize,
        blocks=buffer.blocks,
        bfree=buffer.bfree,
        bavail=buffer.bavail,
        files=buffer.files,
        ffree=buffer.ffree,
        flags=buffer.flags,
    )
