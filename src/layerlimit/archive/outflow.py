"""The way of a tar's bytes out: one walker fills buffers, hashing and compressing run beside it.

A fixed pool of buffers goes round: the walker fills one, the hash thread takes its digest, the
compressing thread (if any) writes it out, and it is free again. Reading, hashing, compressing and
writing all release the GIL, so they overlap; memory stays at the size of the pool.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from layerlimit.archive.buffers import large_buffer
from layerlimit.archive.compress import Encoder
from layerlimit.archive.limits import MIB
from layerlimit.archive.tarformat import BLOCK
from layerlimit.archive.writer import padding

SIZE = 2 * MIB
_BUFFERS = 6
_ZEROS = bytes(SIZE)


class Writable(Protocol):
    """What a tar can be written to: a binary file, a socket's file, or anything with this method."""

    def write(self, data: memoryview, /) -> int | None:
        """Takes some of ``data`` and returns how much, or None for all of it (as :class:`io.RawIOBase`)."""


class OutputFailed(Exception):
    """``write`` of the caller's object raised ``error``, which is not one of reading the layer."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Outflow:
    """Bytes of a tar, hashed, compressed if asked for, and written to ``out``.

    A context manager; one thread uses it. :meth:`finish` ends the tar's bytes and makes the digests
    valid; leaving the block without it stops the threads and drops what is on the way. With an encoder,
    ``out.write`` is called by another thread, one call at a time.
    """

    def __init__(self, out: Writable, encoder: Encoder | None) -> None:
        self.total = 0  # uncompressed bytes handed over
        self.written = 0  # bytes that went to ``out``
        self._out = out
        self._encoder = encoder
        self._diff = hashlib.sha256()
        self._compressed = hashlib.sha256()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._hashing: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._encoding: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        for _ in range(_BUFFERS - 1):
            self._free.put(large_buffer(SIZE))
        self._view = large_buffer(SIZE)
        self._used = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        after_hash = self._encoding if self._encoder else None
        self._start("hash", self._hashing, self._hash, after_hash)
        if self._encoder:
            self._start("compress", self._encoding, self._encode, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def diff_id(self) -> str:
        """Digest of the uncompressed bytes, after :meth:`finish`."""
        return f"sha256:{self._diff.hexdigest()}"

    @property
    def digest(self) -> str:
        """Digest of the bytes that went to ``out``, after :meth:`finish`."""
        return f"sha256:{self._compressed.hexdigest()}" if self._encoder else self.diff_id

    def put(self, data: bytes) -> None:
        """Append ``data``."""
        used, length = self._used, len(data)
        if used + length <= SIZE:
            self._view[used : used + length] = data
            self._used = used + length
            return
        start = 0
        while start < length:
            if self._used == SIZE:
                self._flush()
            part = min(SIZE - self._used, length - start)
            self._view[self._used : self._used + part] = data[start : start + part]
            self._used += part
            start += part

    def put_file(self, head: bytes, fd: int, size: int) -> int:
        """Append a file: its header, ``size`` bytes from ``fd``, padding; returns how many bytes it had.

        When that is less than ``size`` the tar is broken.
        """
        start = self._used + len(head)
        end = start + size
        stop = end + (-size & (BLOCK - 1))
        if stop <= SIZE:  # nearly all files: one go
            view = self._view
            view[self._used : start] = head
            self._used = start
            if os.readv(fd, [view[start:end]]) == size:
                view[end:stop] = padding(size)
                self._used = stop
                return size
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            self.put(head)
        got = self.copy(fd, size)
        self.put(padding(size))
        return got

    def zeros(self, length: int) -> None:
        """Append ``length`` zero bytes."""
        while length:
            if self._used == SIZE:
                self._flush()
            part = min(SIZE - self._used, length)
            self._view[self._used : self._used + part] = memoryview(_ZEROS)[:part]
            self._used += part
            length -= part

    def copy(self, fd: int, length: int) -> int:
        """Append ``length`` bytes read from ``fd`` at its position; returns how many it had, if fewer."""
        left = length
        while left:
            if self._used == SIZE:
                self._flush()
            used = self._used
            got = os.readv(fd, [self._view[used : used + left]])
            if not got:
                break
            self._used = used + got
            left -= got
        return length - left

    def finish(self) -> None:
        """Send what is left, end the compressed stream and wait until all of it is written."""
        self._flush()
        self._stop()
        self._raise()
        if self._encoder:
            self._emit(self._encoder.flush())

    def _flush(self) -> None:
        view = self._view[: self._used]
        if self._encoder is None:
            self._write(view)
        self.total += self._used
        self._hashing.put((self._view, self._used))
        self._view = self._free.get()
        self._used = 0
        self._raise()

    def _write(self, view: memoryview) -> None:
        self.written += len(view)
        while view:
            try:
                count = self._out.write(view)
            except Exception as error:
                raise OutputFailed(error) from error
            view = view[len(view) if count is None else count :]

    def _emit(self, data: bytes) -> None:
        self._compressed.update(data)
        self._write(memoryview(data))

    def _hash(self, view: memoryview) -> None:
        self._diff.update(view)

    def _encode(self, view: memoryview) -> None:
        assert self._encoder
        self._emit(self._encoder.compress(view))

    def _start(
        self,
        name: str,
        source: SimpleQueue[tuple[memoryview, int] | None],
        work: Callable[[memoryview], None],
        target: SimpleQueue[tuple[memoryview, int] | None] | None,
    ) -> None:
        def run() -> None:
            while item := source.get():
                buffer, used = item
                try:
                    if self._failure is None:
                        work(buffer[:used])
                except BaseException as error:  # the walker raises it; the buffers must go on
                    self._failure = error
                if target is not None:
                    target.put(item)
                else:
                    self._free.put(buffer)
            if target is not None:
                target.put(None)

        thread = threading.Thread(target=run, name=f"layer tar: {name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _stop(self) -> None:
        if self._threads:
            self._hashing.put(None)
            for thread in self._threads:
                thread.join()
            self._threads.clear()

    def _raise(self) -> None:
        if self._failure:
            raise self._failure
