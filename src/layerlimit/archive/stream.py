"""A layer tar to read from: produced by a thread while it is read."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerlimit.archive.compress import Compression
from layerlimit.archive.form import Form
from layerlimit.archive.outflow import Writable
from layerlimit.archive.write import Times, Written, write

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_AHEAD = 4  # chunks of an outflow's size that wait for the reader
_BUFFER = 1 << 20


def read_stream(
    upper: Path,
    *,
    form: Form,
    lowers: Sequence[Path] = (),
    compression: Compression | None = None,
    level: int | None = None,
    times: Times = "s",
    sparse: bool = False,
    source_date_epoch: int | None = None,
    live: bool = False,
) -> LayerStream:
    """The tar that :func:`write` would write, as a file to read; see there for the options.

    An error of the export is raised by the read that comes to where it happened, so a tar that ends is whole.
    """

    def produce(out: Writable) -> Written:
        return write(
            upper,
            out,
            form=form,
            lowers=lowers,
            compression=compression,
            level=level,
            times=times,
            sparse=sparse,
            source_date_epoch=source_date_epoch,
            live=live,
        )

    return LayerStream(_Reader(_Channel(), produce))


class LayerStream(io.BufferedReader):
    """A layer tar being produced; a binary file and a context manager, for one thread at a time.

    Closing it early stops the export; no thread or descriptor stays behind.
    """

    def __init__(self, raw: _Reader) -> None:
        super().__init__(raw, _BUFFER)
        self._reader = raw

    @property
    def written(self) -> Written | None:
        """What was exported, once the end has been read; None before."""
        return self._reader.written


class _Closed(Exception):
    """The reader went away."""


class _Channel:
    """Hands chunks from one thread to another; the writer waits when the reader is far behind."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False

    def write(self, data: memoryview, /) -> None:
        chunk = bytes(data)
        with self._changed:
            while len(self._chunks) >= _READ_AHEAD and not self._closed:
                self._changed.wait()
            if self._closed:
                raise _Closed
            self._chunks.append(chunk)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def read(self) -> bytes:
        """The next chunk; empty at the end."""
        with self._changed:
            while not self._chunks and not self._ended:
                self._changed.wait()
            chunk = self._chunks.popleft() if self._chunks else b""
            self._changed.notify_all()
            return chunk

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify_all()


class _Reader(io.RawIOBase):
    def __init__(self, channel: _Channel, produce: Callable[[Writable], Written]) -> None:
        self.written: Written | None = None
        self._channel = channel
        self._rest = memoryview(b"")
        self._result: list[Written | BaseException] = []
        result = self._result

        # The thread must not refer to this object: then dropping the stream ends the thread.
        def run() -> None:
            try:
                result.append(produce(channel))
            except BaseException as error:
                result.append(error)
            finally:
                channel.end()

        self._thread = threading.Thread(target=run, name="layer tar: export", daemon=True)
        self._thread.start()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not self._rest:
            self._rest = memoryview(self._channel.read())
            if not self._rest:
                return self._end()
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._channel.close()
            self._thread.join()
        super().close()

    def _end(self) -> int:
        self._thread.join()
        outcome = self._result[0]
        if isinstance(outcome, BaseException):
            raise outcome
        self.written = outcome
        return 0
