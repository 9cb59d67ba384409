"""The stream of a layer as uncompressed chunks, read, inflated and hashed beside their use.

    stream → (read) → fill → the caller extracts → buffers go round again
                          ↘ hash                ↗

The caller's thread extracts and one more hashes. To *fill* is to read what is not compressed: little work, of
whichever of the two would wait otherwise, so that two processors stay busy with small files and with large
ones. Or it is to inflate, the longest work of all and in one piece: then it has a thread, and ``read`` has
another. Reading, inflating and hashing leave the interpreter lock. Memory is the buffers, whatever the size
of the layer.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from layerlimit.archive.buffers import large_buffer
from layerlimit.archive.inflate import Compression, Inflater, detect
from layerlimit.archive.limits import KIB, MIB, Limits
from layerlimit.errors import from_os_error

CHUNK = 4 * MIB
_RAW = 256 * KIB  # compressed bytes at a time, and the first look at any stream
_BUFFERS = 6
_RAW_BUFFERS = 3


class Readable(Protocol):
    """What a layer is read from: a file in binary mode, a pipe, a socket's file.

    Where it has a ``readinto`` as well, that is used instead and saves a copy.
    """

    def read(self, size: int, /) -> bytes | None:
        """At most ``size`` bytes, none at the end."""


def _readinto_of(stream: Readable) -> Callable[[memoryview], int | None]:
    own: Callable[[memoryview], int | None] | None = getattr(stream, "readinto", None)
    if own is not None:
        return own

    def readinto(buffer: memoryview) -> int | None:
        data = stream.read(len(buffer))
        if data is None:
            return None
        buffer[: len(data)] = data
        return len(data)

    return readinto


class _Stopped(Exception):
    """The consumer is gone."""


class _ReadAhead:
    """A thread that fills buffers ahead of :meth:`next`, and passes on what its work raises."""

    def __init__(self, fill: Callable[[memoryview], int], *, size: int, count: int) -> None:
        self._fill = fill
        self._full: SimpleQueue[tuple[memoryview, int] | BaseException] = SimpleQueue()
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._size = size
        self._unmade = count  # buffers come into being as they are needed
        self._thread = threading.Thread(target=self._run, name="layer-read", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def next(self) -> tuple[memoryview, int]:
        """The next buffer and how many bytes it holds, 0 at the end; :meth:`release` it when done."""
        item = self._full.get()
        if isinstance(item, BaseException):
            self._full.put(item)  # for whoever asks again
            raise item
        if item[1] == 0:
            self._full.put(item)
        return item

    def release(self, buffer: memoryview) -> None:
        self._free.put(buffer)

    def stop(self) -> None:
        """Make the thread end as soon as it looks; wakes it, and whoever waits in :meth:`next`."""
        self._free.put(None)
        self._full.put(_Stopped())

    def join(self, *, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while True:
                buffer: memoryview | None
                if self._unmade and self._free.empty():
                    self._unmade -= 1
                    buffer = memoryview(bytearray(self._size))
                else:
                    buffer = self._free.get()
                if buffer is None:
                    return
                filled = self._fill(buffer)
                self._full.put((buffer, filled))
                if filled == 0:
                    return
        except BaseException as error:  # whatever it is belongs to the thread that asked for the work
            self._full.put(error)


@dataclass(slots=True, eq=False)
class _Chunk:
    """A filled buffer, until the caller and the hash are done with it."""

    buffer: memoryview
    filled: int
    users: int = 2


class _Chunks:
    """Chunks in the order of the stream, all of them hashed by a thread.

    :meth:`next` fills one itself when none is ready, and the thread fills ahead while it has none to hash; or
    a thread of its own fills them all, if ``apart``. One fills at a time. Nobody waits for anything but the
    condition, with no lock or buffer in its hands: who waited for a buffer and kept another from its work
    would wait for ever.
    """

    def __init__(
        self, fill: Callable[[memoryview], int], update: Callable[[memoryview], None], *, apart: bool
    ) -> None:
        self._fill = fill
        self._update = update
        self._changed = threading.Condition()  # its lock guards all that follows
        self._filling = False
        self._ready: deque[_Chunk] = deque()
        self._unhashed: deque[_Chunk] = deque()
        self._spare: list[memoryview] = []
        self._unmade = _BUFFERS  # buffers come into being as they are needed
        self._ended = False
        self._failure: BaseException | None = None
        self._apart = apart
        work = [("layer-hash", self._hash_all)]
        if apart:
            work.append(("layer-inflate", self._fill_all))
        self._threads = [
            threading.Thread(target=self._run, args=[step], name=name, daemon=True) for name, step in work
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def next(self) -> _Chunk | None:
        """The next chunk, None at the end; :meth:`release` it when done, before asking for another."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._ready or self._ended or self._failure or self._can_fill()
                )
                if self._ready:
                    return self._ready.popleft()
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    return None
                buffer = self._begin_to_fill()
            self._fill_one(buffer)

    def release(self, chunk: _Chunk) -> None:
        with self._changed:
            chunk.users -= 1
            if chunk.users == 0 and self._failure is None:
                self._spare.append(chunk.buffer)
                self._changed.notify_all()

    def stop(self) -> None:
        """Make the threads end as soon as they look."""
        with self._changed:
            self._failure = self._failure or _Stopped()
            self._changed.notify_all()

    def join(self, *, timeout: float | None = None) -> None:
        for thread in self._threads:
            thread.join(timeout)

    def drop(self) -> None:
        """Let go of all buffers, after :meth:`stop`; a thread that still has one does so when it ends."""
        with self._changed:
            self._ready.clear()
            self._unhashed.clear()
            self._spare.clear()

    def finish(self) -> None:
        """Wait until the last chunk is hashed."""
        self.join()
        if self._failure is not None:
            raise self._failure

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # whatever it is belongs to the thread that asked for the work
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _hash_all(self) -> None:
        while True:
            chunk = None
            with self._changed:
                self._changed.wait_for(
                    lambda: self._unhashed or self._ended or self._failure or self._can_fill()
                )
                if self._failure is not None or (self._ended and not self._unhashed):
                    return
                if self._unhashed:
                    chunk = self._unhashed.popleft()
                else:
                    buffer = self._begin_to_fill()
            if chunk is None:
                self._fill_one(buffer)
            else:
                self._update(chunk.buffer[: chunk.filled])
                self.release(chunk)

    def _fill_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._spare or self._unmade or self._failure)
                if self._failure is not None:
                    return
                buffer = self._begin_to_fill()
            self._fill_one(buffer)
            if self._ended:
                return

    def _can_fill(self) -> bool:
        return not self._apart and not self._filling and bool(self._spare or self._unmade)

    def _begin_to_fill(self) -> memoryview:
        self._filling = True
        if self._spare:
            return self._spare.pop()
        self._unmade -= 1
        return large_buffer(CHUNK)

    def _fill_one(self, buffer: memoryview) -> None:
        """Fill ``buffer`` and hand it to both sides."""
        try:
            filled = self._fill(buffer)
        except BaseException as error:  # nobody is to read on
            with self._changed:
                self._filling = False
                self._failure = self._failure or error
                self._changed.notify_all()
            raise
        with self._changed:
            self._filling = False
            if filled and self._failure is None:
                chunk = _Chunk(buffer, filled)
                self._ready.append(chunk)
                self._unhashed.append(chunk)
            else:
                self._ended = True
            self._changed.notify_all()


class Source:
    """The uncompressed bytes of ``stream`` in chunks, and their digest.

    A context manager. Threads are started only for streams that do not end within the first 256 KiB. After
    a failure, a thread may be left waiting for ``stream`` until its pending read returns; it then ends
    without reading on.
    """

    def __init__(self, stream: Readable, *, limits: Limits | None = None) -> None:
        self._readinto = _readinto_of(stream)
        self._limits = limits or Limits()
        self._hash = hashlib.sha256()
        self._lent: _Chunk | None = None
        self._first: tuple[memoryview, int] | None = None
        self._stream_ended = False
        self._ended = False
        self._raw: _ReadAhead | None = None
        self._chunks: _Chunks | None = None
        self._fill: Callable[[memoryview], int] = self._read
        self._raw_lent: memoryview | None = None
        self._own: memoryview | None = None  # the only buffer, without threads
        self.compression = Compression.NONE
        self.bytes = 0  # handed out by :meth:`chunk`, uncompressed

    def __enter__(self) -> Self:
        first = memoryview(bytearray(_RAW))
        filled = self._read(first)
        self._first = (first, filled)
        self.compression = detect(bytes(first[: min(filled, 16)]))
        threaded = not self._stream_ended
        if self.compression is Compression.NONE:
            self._hash.update(first[:filled])
        else:
            inflater = Inflater(self.compression, self._next_raw, limits=self._limits)
            self._fill = inflater.fill
            if threaded:
                self._raw = _ReadAhead(self._read, size=_RAW, count=_RAW_BUFFERS)
                self._raw.start()
        if threaded:
            apart = self.compression is not Compression.NONE
            self._chunks = _Chunks(self._fill, self._hash.update, apart=apart)
            self._chunks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in (self._raw, self._chunks):
            if thread is not None:
                thread.stop()
        if self._chunks is not None and self._raw is not None:
            self._chunks.join()  # it waits for nothing but self._raw, which is stopped
        reading = self._raw or self._chunks
        if reading is not None:
            # Nobody can interrupt a read, and who feeds the stream may be waiting for us.
            reading.join(timeout=None if self._stream_ended else 0.1)
        # This object refers to itself: its megabytes would stay until the garbage collector comes by.
        self._lent = self._first = self._raw_lent = self._own = None
        if self._chunks is not None:
            self._chunks.drop()

    def chunk(self) -> memoryview:
        """The next chunk, valid until the next call; empty at the end. Whole chunks but for the last one."""
        if self._ended:
            return memoryview(b"")
        if self._lent is not None and self._chunks is not None:
            self._chunks.release(self._lent)
            self._lent = None
        if self._first is not None and self.compression is Compression.NONE:
            (buffer, filled), self._first = self._first, None  # hashed before all others
        elif self._chunks is not None:
            self._lent = self._chunks.next()
            buffer, filled = (self._lent.buffer, self._lent.filled) if self._lent else (memoryview(b""), 0)
        else:
            self._own = buffer = self._own or large_buffer(CHUNK)
            filled = self._fill(buffer)
            self._hash.update(buffer[:filled])
        self._ended = filled == 0
        self.bytes += filled
        return buffer[:filled]

    def digest(self) -> str:
        """``sha256:<hex>`` of the uncompressed bytes, once :meth:`chunk` has returned an empty one."""
        if self._chunks is not None:
            self._chunks.finish()
        return f"sha256:{self._hash.hexdigest()}"

    def _next_raw(self) -> memoryview:
        """The next compressed piece, valid until the next call."""
        if self._first is not None:
            (buffer, filled), self._first = self._first, None
            return buffer[:filled]
        if self._raw is None:
            return memoryview(b"")
        if self._raw_lent is not None:
            self._raw.release(self._raw_lent)
        self._raw_lent, filled = self._raw.next()
        return self._raw_lent[:filled]

    def _read(self, buffer: memoryview) -> int:
        """Fill ``buffer`` from the stream; less only at its end."""
        filled, size = 0, len(buffer)
        while filled < size and not self._stream_ended:
            try:
                count = self._readinto(buffer[filled:])
            except OSError as error:
                raise from_os_error(error, "read the layer archive") from error
            if count is None:
                raise BlockingIOError("the stream of a layer has to be in blocking mode")
            filled += count
            self._stream_ended = count == 0
        return filled
