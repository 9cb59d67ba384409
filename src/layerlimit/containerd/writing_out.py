"""What is extracted from a blob goes to the disk while the rest of it is read."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from layerlimit.linux.files import sync_file_system_of

if TYPE_CHECKING:
    import io

    from _typeshed import WriteableBuffer

EVERY: Final = 8 << 20  # bytes of a blob, so three times as much on disk, which takes milliseconds to write


class WritingOut:
    """The stream ``blob``; ``directory``'s file system is synced each time :data:`EVERY` bytes were read.

    A context manager, for one reader; a thread syncs. So the sync that makes a layer durable waits for its
    last piece instead of all of it; a small one is left to it, which goes by :attr:`opened` as well. The
    kernel tells a descriptor of a failed write once: leaving raises the OSError.
    """

    def __init__(self, blob: io.RawIOBase, directory: Path) -> None:
        self._blob = blob
        self._directory = directory
        self._unwritten = 0
        self._due = threading.Event()
        self._ended = False
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        #: A descriptor of ``directory`` from before the first byte was read.
        self.opened = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._ended = True
            self._due.set()
            self._thread.join()
        os.close(self.opened)
        if self._failure is not None and error is None:
            raise self._failure

    def read(self, size: int, /) -> bytes | None:
        """As the blob's."""
        data = self._blob.read(size)
        self._count(len(data or b""))
        return data

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """As the blob's."""
        count = self._blob.readinto(buffer)
        self._count(count or 0)
        return count

    def _count(self, count: int) -> None:
        self._unwritten += count
        if self._unwritten >= EVERY:
            self._unwritten = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._sync, name="layer-write-out", daemon=True)
                self._thread.start()
            self._due.set()

    def _sync(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._ended:
                return
            try:
                sync_file_system_of(self.opened, self._directory)
            except OSError as error:
                self._failure = error
                return
