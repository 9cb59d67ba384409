"""Who uses a mount: ``holds/<key>/``, where a key is a layer's id or ``<id>@ro`` for its read-only view.

    count            persistent holds (get/put): "<boot id> <number>"
    engine           handed out by mounts(): "<boot id>"
    process.<random> one per process hold: a file whose flock dies with its process
    child.<key>      a mounted descendant that needs this layer's image: "<boot id>"

Nothing here is synced: a hold of another boot, or one whose mount the kernel does not show, does not
count. Callers hold the layer's lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Self

from layerlimit.linux import files
from layerlimit.linux.files import try_flock


@cache
def boot_id() -> str:
    """What distinguishes this boot of the kernel from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class ProcessHold:
    """A hold that ends with its process, by whatever cause, or with :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try_flock(self._fd)

    def close(self) -> None:
        """End the hold; the caller then settles the mount. Once; more calls do nothing."""
        if self._fd >= 0:
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
            finally:  # a file that stays is one of a dead process from here on
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Holds:
    """The holds of one root."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def known(self) -> list[str]:
        """The keys that have, or had, holds."""
        return sorted(os.listdir(self._directory))

    def count(self, key: str) -> int:
        """Persistent holds recorded in this boot."""
        words = self._read(key, "count").split()
        return int(words[1]) if len(words) == 2 and words[0] == boot_id() and words[1].isdigit() else 0

    def set_count(self, key: str, count: int) -> None:
        """Record the number of persistent holds; 0 removes the record."""
        self._write(key, "count", f"{boot_id()} {count}" if count else "")

    def of_engine(self, key: str) -> bool:
        """Whether an engine was given this layer's mounts in this boot."""
        return self._read(key, "engine") == boot_id()

    def begin_engine(self, key: str) -> None:
        """Have a sweep look at this key, should we die before :meth:`set_engine`; counts as no hold."""
        self._make(key)

    def set_engine(self, key: str, held: bool) -> None:
        """Record that an engine was given the mounts, or gave them up."""
        self._write(key, "engine", boot_id() if held else "")

    def of_process(self, key: str) -> ProcessHold:
        """Start a process hold."""
        self._make(key)
        return ProcessHold(self._directory / key / f"process.{secrets.token_hex(8)}")

    def live_processes(self, key: str) -> int:
        """How many process holds live; those of dead processes are removed."""
        return sum(self._is_live(self._directory / key / name) for name in self._names(key, "process."))

    def add_child(self, key: str, child: str) -> None:
        """Record that the mount ``child`` needs this layer's image."""
        self._write(key, f"child.{child}", boot_id())

    def drop_child(self, key: str, child: str) -> None:
        """The mount ``child`` is gone."""
        self._write(key, f"child.{child}", "")

    def has_child(self, key: str, child: str) -> bool:
        """Whether the mount ``child`` is recorded to need this layer."""
        return os.path.exists(f"{self._directory}/{key}/child.{child}")

    def needed_by_child(self, key: str, is_up: Callable[[str], bool]) -> bool:
        """Whether a descendant that is up needs this layer; records of others met on the way are removed."""
        for name in self._names(key, "child."):
            child = name.removeprefix("child.")
            if self._read(key, name) == boot_id() and (is_up(child) or self.of_engine(child)):
                return True
            self._write(key, name, "")
        return False

    def tidy(self, key: str) -> None:
        """Remove records that a dead process was about to write."""
        for name in self._names(key, "new."):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory / key / name)

    def forget(self, key: str) -> None:
        """Remove the directory of a key that has no holds left; keeps one that has."""
        try:
            os.rmdir(self._directory / key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise

    def clear(self, key: str) -> None:
        """Remove every record of a key: its layer is gone, or everything is being unmounted."""
        for name in self._names(key, ""):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory / key / name)
        self.forget(key)

    def _is_live(self, path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if not try_flock(fd):
                return True
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return False
        finally:
            os.close(fd)

    def _names(self, key: str, prefix: str) -> list[str]:
        try:
            return [name for name in os.listdir(f"{self._directory}/{key}") if name.startswith(prefix)]
        except FileNotFoundError:
            return []

    def _make(self, key: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{self._directory}/{key}", 0o700)

    def _read(self, key: str, name: str) -> str:
        try:
            return files.read_whole(f"{self._directory}/{key}/{name}").decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _write(self, key: str, name: str, text: str) -> None:
        path = f"{self._directory}/{key}/{name}"
        if not text:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        self._make(key)
        new = f"{self._directory}/{key}/new.{name}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            files.write_whole(fd, text.encode())
        finally:
            os.close(fd)
        os.rename(new, path)
