"""The stream of a layer as uncompressed chunks, read, inflated and hashed beside their use.

    stream → (read) → fill and hash → the caller extracts → buffers go round again

Each arrow is a queue; ``fill`` is a thread that reads or inflates, and then hashes what it has handed over
while it lies in its processor's cache; ``read`` is one more thread for compressed streams. One for the hash
alone doubles the hand-offs, and each costs a wake-up and a wait for the interpreter lock, which reading,
inflating and hashing leave. Memory is the buffers, whatever the size of the layer.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from layerlimit.archive.inflate import Compression, Inflater, detect
from layerlimit.archive.limits import KIB, MIB, Limits
from layerlimit.errors import from_os_error

CHUNK = MIB
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


class _Filler:
    """A thread that fills buffers ahead of :meth:`next`, and passes on what its work raises.

    ``then`` gets each of them, in order, after :meth:`next` may have it.
    """

    def __init__(
        self,
        name: str,
        fill: Callable[[memoryview], int],
        *,
        size: int,
        count: int,
        then: Callable[[memoryview], None] | None = None,
    ) -> None:
        self._fill = fill
        self._then = then
        self._full: SimpleQueue[tuple[memoryview, int] | BaseException] = SimpleQueue()
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._size = size
        self._unmade = count  # buffers come into being as they are needed
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

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
                if self._then is not None:
                    self._then(buffer[:filled])
        except BaseException as error:  # whatever it is belongs to the thread that asked for the work
            self._full.put(error)


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
        self._lent: tuple[memoryview, int] | None = None
        self._first: tuple[memoryview, int] | None = None
        self._stream_ended = False
        self._ended = False
        self._raw: _Filler | None = None
        self._filler: _Filler | None = None
        self._fill: Callable[[memoryview], int] = self._read
        self._spare: memoryview | None = None
        self._raw_lent: memoryview | None = None
        self.compression = Compression.NONE
        self.bytes = 0  # handed out by :meth:`chunk`, uncompressed

    def __enter__(self) -> Self:
        first = memoryview(bytearray(_RAW))
        filled = self._read(first)
        self._first = (first, filled)
        self.compression = detect(bytes(first[: min(filled, 16)]))
        threaded = not self._stream_ended
        if self.compression is not Compression.NONE:
            inflater = Inflater(self.compression, self._next_raw, limits=self._limits)
            self._fill = inflater.fill
            if threaded:
                self._raw = _Filler("layer-read", self._read, size=_RAW, count=_RAW_BUFFERS)
                self._raw.start()
        if threaded:
            if self.compression is Compression.NONE:
                self._hash.update(first[:filled])
            self._filler = _Filler(
                "layer-fill", self._fill, size=CHUNK, count=_BUFFERS, then=self._hash.update
            )
            self._filler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for filler in (self._raw, self._filler):
            if filler is not None:
                filler.stop()
        if self._filler is not None and self._raw is not None:
            self._filler.join()  # it waits for nothing but self._raw, which is stopped
        reading = self._raw or self._filler
        if reading is not None:
            # Nobody can interrupt a read, and who feeds the stream may be waiting for us.
            reading.join(timeout=None if self._stream_ended else 0.1)

    def chunk(self) -> memoryview:
        """The next chunk, valid until the next call; empty at the end. Whole chunks but for the last one."""
        if self._ended:
            return memoryview(b"")
        if self._lent is not None:
            self._finish_chunk(*self._lent)
            self._lent = None
        if self._first is not None and self.compression is Compression.NONE:
            self._lent, self._first = self._first, None
        elif self._filler is not None:
            self._lent = self._filler.next()
        else:
            buffer = self._spare if self._spare is not None else memoryview(bytearray(CHUNK))
            self._spare = None
            self._lent = (buffer, self._fill(buffer))
        buffer, filled = self._lent
        self._ended = filled == 0
        self.bytes += filled
        return buffer[:filled]

    def digest(self) -> str:
        """``sha256:<hex>`` of the uncompressed bytes, once :meth:`chunk` has returned an empty one."""
        if self._filler is not None:
            self._filler.join()
        return f"sha256:{self._hash.hexdigest()}"

    def _finish_chunk(self, buffer: memoryview, filled: int) -> None:
        if self._filler is None:
            self._hash.update(buffer[:filled])
            self._spare = buffer if len(buffer) == CHUNK else None
        elif len(buffer) == CHUNK:
            self._filler.release(buffer)

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
