"""AUFS's store of hard links (``.wh..wh.plnk``) in a layer: content that several names of the layer share.

Old layers carry it: each file with several names lies there under its inode number, and the names are hard
links to it. The content waits in one nameless file on the layer's own file system, where the layer's limit
holds for it too.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

from layerlimit.archive.form import AUFS_LINKS
from layerlimit.archive.metadata import check_owner, entry_times
from layerlimit.archive.reader import Reader
from layerlimit.archive.tarformat import invalid, printable


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of the store: where its content waits, and its header."""

    offset: int
    size: int
    mode: int
    uid: int
    gid: int
    times: tuple[int, int]


class LinkStore:
    """The files of one layer's store; close it at the end."""

    def __init__(self) -> None:
        self._fd = -1
        self._end = 0
        self._stored: dict[bytes, Stored] = {}

    def add(self, root: int, name: bytes, reader: Reader) -> None:
        """Take the content of the current entry; ``root`` is the open root of the layer."""
        check_owner(reader)
        if reader.regions is not None:
            raise invalid(
                f"the sparse file {printable(reader.name)} in AUFS's store is not supported",
                code="archive.unsupported",
            )
        if self._fd < 0:
            temporary = AUFS_LINKS + b"." + secrets.token_hex(8).encode()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(temporary, flags, 0o600, dir_fd=root)
            os.unlink(temporary, dir_fd=root)
        offset = self._end
        while piece := reader.take():
            written = 0
            while written < len(piece):
                written += os.pwrite(self._fd, piece[written:], self._end + written)
            self._end += written
        self._stored[name] = Stored(
            offset=offset,
            size=reader.size,
            mode=reader.mode,
            uid=reader.uid,
            gid=reader.gid,
            times=entry_times(reader),
        )

    def find(self, name: bytes) -> Stored | None:
        return self._stored.get(name)

    def copy(self, stored: Stored, target: int) -> None:
        """Write the content of ``stored`` to the empty file ``target``."""
        offset, left = stored.offset, stored.size
        while left:
            copied = os.sendfile(target, self._fd, offset, left)
            offset += copied
            left -= copied

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
