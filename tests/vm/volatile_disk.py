"""A disk with a volatile write cache: what no completed flush covers may be lost, in any subset.

    with VolatileDisk(directory, base) as disk, Machine(directory, disks=[disk]) as machine:
        ...
        machine.kill()
        disk.cut(position, random.Random(7), target)  # the disk as a power cut at that position leaves it

The disk is an NBD server of this process, to which qemu passes the guest's reads, writes and flushes.
Everything is logged in the order in which it was answered. A write counts as durable only when a flush that
the guest sent *after* its answer was answered too: of requests that come together, flushes go first. Of each
block that was written since, a cut keeps any one version: the durable one or a later one, chosen block by
block (4 KiB, which is what a disk writes in one piece), so writes are lost, reordered and torn.

The last :data:`EVENTS` bytes are no storage: what the guest writes there (O_DIRECT, one JSON object padded
with zeros) is logged as an event, in exact order with its other writes. So "commit had returned before the
cut" is known without any delay between the two.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BLOCK = 4096
EVENTS = 1 << 20

# https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_OPT_MAGIC, _OPT_REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_ABORT, _OPT_GO = 2, 7
_REP_ACK, _REP_INFO, _REP_ERR_UNSUP = 1, 3, 0x80000001
_HAS_FLAGS, _SEND_FLUSH = 1, 4
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_EINVAL = 22


@dataclass(frozen=True, slots=True)
class _Entry:
    """A write of ``size`` bytes at ``offset`` (in the log file: ``at``), a flush, or an event."""

    offset: int = 0
    at: int = 0
    size: int = 0  # 0: a flush, or an event
    event: dict[str, Any] | None = None


class VolatileDisk:
    """See the module. ``base`` is what the disk holds at first, with :data:`EVENTS` bytes at its end."""

    def __init__(self, directory: Path, base: Path) -> None:
        self._base = base
        self.size = base.stat().st_size
        self._changed = threading.Condition()
        self._log: list[_Entry] = []
        self._thread: threading.Thread | None = None
        self._live_path = directory / f"{base.name}.live"
        copy_disk(base, self._live_path)
        self._live = os.open(self._live_path, os.O_RDWR | os.O_CLOEXEC)
        self._data = os.open(directory / f"{base.name}.log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._unflushed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unplug()
        os.close(self._live)
        os.close(self._data)

    def plug(self) -> socket.socket:
        """The end of a connection that qemu is to be given; this disk serves the other until qemu ends."""
        qemus, ours = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(ours,), daemon=True)
        self._thread.start()
        return qemus

    def unplug(self) -> None:
        """Waits until all that a killed qemu had sent is in the log."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # -- what happened -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """The length of the log; a position is a number of entries from its beginning."""
        return len(self._log)

    def events(self, position: int) -> Iterator[dict[str, Any]]:
        """The events before a position, in order."""
        return (entry.event for entry in self._log[:position] if entry.event is not None)

    def positions(self, key: str, value: object = None) -> list[int]:
        """The positions right after each event that has ``key``, with that ``value`` if there is one."""
        return [
            number + 1
            for number, entry in enumerate(self._log)
            if entry.event and key in entry.event and value in (None, entry.event[key])
        ]

    def wait_for(self, key: str, value: object = None, *, count: int, timeout: float, unless: str) -> bool:
        """Waits for ``count`` events as in :meth:`positions`; False when one has ``unless``, or too late."""

        def decided() -> bool:
            return bool(self.positions(unless)) or len(self.positions(key, value)) >= count

        with self._changed:
            return self._changed.wait_for(decided, timeout) and not self.positions(unless)

    def wait_for_unflushed(self, *, blocks: int, timeout: float) -> bool:
        """Waits until that many blocks could be lost; False when that takes too long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unflushed >= blocks, timeout)

    def risky(self, *, blocks: int) -> list[int]:
        """The positions at which that many blocks could be lost."""
        found, unflushed = [], 0
        for number, entry in enumerate(self._log):
            unflushed = _unflushed_after(entry, unflushed)
            if unflushed >= blocks:
                found.append(number + 1)
        return found

    def cut(self, position: int, choice: random.Random | None, target: Path) -> int:
        """Makes ``target`` the disk as a cut at ``position`` may leave it; says how many blocks lost writes.

        ``choice`` decides what stays of all that may be lost; without one, nothing does.
        """
        lost = 0
        copy_disk(self._base, target)
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            pending: dict[int, list[bytes]] = {}
            for entry in self._log[:position]:
                if entry.event is not None:
                    continue
                if entry.size:
                    self._collect(entry, fd, pending)
                    continue
                for number, versions in pending.items():
                    os.pwrite(fd, versions[-1], number * BLOCK)
                pending.clear()
            for number, versions in pending.items():
                kept = 0 if choice is None else choice.randint(0, len(versions))
                if kept:
                    os.pwrite(fd, versions[kept - 1], number * BLOCK)
                lost += kept < len(versions)
        finally:
            os.close(fd)
        return lost

    def _collect(self, entry: _Entry, fd: int, pending: dict[int, list[bytes]]) -> None:
        data = os.pread(self._data, entry.size, entry.at)
        end = entry.offset + entry.size
        for number in range(entry.offset // BLOCK, -(-end // BLOCK)):
            start = number * BLOCK
            versions = pending.setdefault(number, [])
            low, high = max(start, entry.offset), min(start + BLOCK, end)
            piece = data[low - entry.offset : high - entry.offset]
            if len(piece) < BLOCK:
                old = versions[-1] if versions else os.pread(fd, BLOCK, start)
                piece = old[: low - start] + piece + old[high - start :]
            versions.append(piece)

    # -- the server --------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._negotiate(connection)
                self._transmit(connection)
            except (ConnectionError, EOFError):
                pass  # qemu was killed

    def _negotiate(self, connection: socket.socket) -> None:
        connection.sendall(b"NBDMAGIC" + struct.pack(">QH", _OPT_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES))
        _receive(connection, 4)  # the client's flags
        while True:
            _, option, length = _OPTION.unpack(_receive(connection, _OPTION.size))
            _receive(connection, length)
            if option == _OPT_ABORT:
                raise EOFError
            if option != _OPT_GO:
                connection.sendall(_OPTION_REPLY.pack(_OPT_REPLY_MAGIC, option, _REP_ERR_UNSUP, 0))
                continue
            info = struct.pack(">HQH", 0, self.size, _HAS_FLAGS | _SEND_FLUSH)
            connection.sendall(_OPTION_REPLY.pack(_OPT_REPLY_MAGIC, option, _REP_INFO, len(info)) + info)
            connection.sendall(_OPTION_REPLY.pack(_OPT_REPLY_MAGIC, option, _REP_ACK, 0))
            return

    def _transmit(self, connection: socket.socket) -> None:
        buffer = bytearray()
        while data := connection.recv(1 << 20):
            buffer += data
            requests = list(_requests(buffer))
            # None of these was sent in the knowledge of another's answer: a flush among them covers none.
            for kind, handle, offset, payload in sorted(requests, key=lambda each: each[0] != _FLUSH):
                if kind == _DISCONNECT:
                    return
                connection.sendall(self._answer(kind, handle, offset, payload))

    def _answer(self, kind: int, handle: int, offset: int, payload: bytes | int) -> bytes:
        if isinstance(payload, bytes):
            self._write(offset, payload)
        elif kind == _FLUSH:
            self._append(_Entry())
        elif kind == _READ:
            return _REPLY.pack(_REPLY_MAGIC, 0, handle) + os.pread(self._live, payload, offset)
        else:
            return _REPLY.pack(_REPLY_MAGIC, _EINVAL, handle)
        return _REPLY.pack(_REPLY_MAGIC, 0, handle)

    def _write(self, offset: int, data: bytes) -> None:
        if offset >= self.size - EVENTS:
            self._append(_Entry(event=json.loads(data.rstrip(b"\0"))))
            return
        os.pwrite(self._live, data, offset)
        os.pwrite(self._data, data, self._end)
        self._append(_Entry(offset=offset, at=self._end, size=len(data)))
        self._end += len(data)

    def _append(self, entry: _Entry) -> None:
        with self._changed:
            self._log.append(entry)
            self._unflushed = _unflushed_after(entry, self._unflushed)
            self._changed.notify_all()


def _unflushed_after(entry: _Entry, before: int) -> int:
    """How many blocks were written since the last flush; more than there are, if some were written twice."""
    if entry.event is not None:
        return before
    return before + -(-entry.size // BLOCK) if entry.size else 0


def _requests(buffer: bytearray) -> Iterator[tuple[int, int, int, bytes | int]]:
    """Takes the whole requests out of the buffer: kind, handle, offset, and the data or the length."""
    while len(buffer) >= _REQUEST.size:
        magic, _, kind, handle, offset, length = _REQUEST.unpack_from(buffer)
        assert magic == _REQUEST_MAGIC
        end = _REQUEST.size + (length if kind == _WRITE else 0)
        if len(buffer) < end:
            return
        yield kind, handle, offset, bytes(buffer[_REQUEST.size : end]) if kind == _WRITE else length
        del buffer[:end]


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def copy_disk(source: Path, target: Path) -> None:
    """A copy whose holes stay holes."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)


def make_base(path: Path, *, file_system: str, size: int) -> Path:
    """A disk with an empty file system and room for events behind it."""
    with path.open("xb") as file:
        file.truncate(size)
    inside = size - EVENTS
    if file_system == "ext4":
        command = [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-F",
            "-E",
            "lazy_itable_init=0",
            str(path),
            f"{inside >> 10}k",
        ]
    else:
        command = ["mkfs.xfs", "-q", "-f", "-d", f"size={inside}", str(path)]
    assert shutil.which(command[0]) is not None, f"{command[0]} is missing: run scripts/setup test"
    subprocess.run(command, check=True)
    return path
