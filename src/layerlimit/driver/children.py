"""Which layers stand on a layer, without reading every chain: ``children/<parent>/<child>``, empty files.

An index of what ``layers/`` says, and no truth of its own: an entry is there before its layer is, and an
entry without a layer does not count. It is not synced; the sweep after a boot or a crash makes it anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path


class Children:
    """The index of one root. Callers hold the child's lock, and that of its parent at least shared."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, parent: str, child: str) -> None:
        """Enter a child before it exists."""
        path = self._directory / parent / child
        while True:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
                return
            except FileNotFoundError:  # the first child, or the last one was dropped this very moment
                path.parent.mkdir(mode=0o700, exist_ok=True)

    def drop(self, parent: str, child: str) -> None:
        """Take a child out that is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._directory / parent / child)
        try:
            os.rmdir(self._directory / parent)
        except OSError as error:
            if error.errno not in (
                errno.ENOTEMPTY,
                errno.EEXIST,
                errno.ENOENT,
            ):  # it has others, or never had
                raise

    def of(self, parent: str) -> list[str]:
        """The children entered for ``parent``, sorted; some may not exist."""
        try:
            return sorted(os.listdir(self._directory / parent))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def rebuild(self, parents: Iterable[tuple[str, str]], is_gone: Callable[[str], bool]) -> None:
        """Enter every (child, parent) that is missing, and take out each child that ``is_gone``."""
        for child, parent in parents:
            if not os.path.exists(self._directory / parent / child):
                self.add(parent, child)
        for parent in os.listdir(self._directory):
            for child in self.of(parent):
                if is_gone(child):
                    self.drop(parent, child)
            with contextlib.suppress(OSError):
                os.rmdir(self._directory / parent)
