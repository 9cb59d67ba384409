"""What a store is after each operation, as a dict of trees that knows limits and holds, but no disk.

Requests are those of :mod:`tests.store.worker`, and so are the answers foretold. A refused request changes
nothing here, as it must change nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

KIB = 1 << 10
MIB = 1 << 20
BLOCK = 4 * KIB

#: What directories, long extents and the like may take of a limit, besides the blocks of files.
SPARE = 32 * KIB
#: What a layer may have beyond its limit and 1 % of it: one that grew has these.
GROWN = 200 * KIB

Request = dict[str, Any]
Answer = dict[str, Any]


class Refused(Exception):
    """The store raises the error of this name instead."""


@dataclass
class Entry:
    """A layer: its own files as sizes and fillings by path, and which of its parent's are ``hidden``."""

    kind: str
    parent: str
    limit: int
    labels: dict[str, str]
    own: dict[str, tuple[int, int]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    holds: int = 0

    def too_much(self, path: str) -> int:
        """A size for a file that is a little too large for a limited layer."""
        others = sum(-(-size // BLOCK) * BLOCK for at, (size, _) in self.own.items() if at != path)
        return self.limit - others + self.limit // 100 + GROWN

    def fits(self, limit: int) -> bool:
        """Whether its files fit into a limit (0: none); sizes that leave that open are no use to a test."""
        used = sum(-(-size // BLOCK) * BLOCK for size, _ in self.own.values())
        fits = not limit or used <= limit - SPARE
        assert fits or used > limit + limit // 100 + GROWN, f"{used} bytes may fit into {limit} or not"
        return fits


@dataclass
class World:
    """All entries by name. ``limits``: the store can limit; ``online``: what is mounted can grow."""

    limits: bool
    online: bool
    entries: dict[str, Entry] = field(default_factory=dict)

    def perform(self, request: Request) -> Answer:
        """Carry a request out and foretell the answer."""
        arguments = {key: value for key, value in request.items() if key != "do"}
        try:
            return {"value": getattr(self, request["do"])(**arguments)}
        except Refused as error:
            return {"error": str(error)}

    def copy(self) -> World:
        """Another world that is the same for now."""
        entries = {
            name: replace(entry, own=dict(entry.own), hidden=set(entry.hidden))
            for name, entry in self.entries.items()
        }
        return replace(self, entries=entries)

    def portrait(self) -> dict[str, list[Any]]:
        """What can be seen of the entries without mounting them."""
        return {
            name: [entry.kind, entry.parent, entry.limit, entry.labels, entry.holds]
            for name, entry in self.entries.items()
        }

    def children(self, name: str) -> list[str]:
        return [other for other, entry in self.entries.items() if entry.parent == name]

    def tree(self, name: str) -> dict[str, tuple[int, int]]:
        """The files that are seen in a layer."""
        entry = self.entries[name]
        return self._below(entry) | entry.own

    def _below(self, entry: Entry) -> dict[str, tuple[int, int]]:
        below = self.tree(entry.parent) if entry.parent else {}
        return {path: file for path, file in below.items() if path not in entry.hidden}

    def _hide(self, entry: Entry, path: str) -> None:
        """Let the parent's file at a path be seen no longer."""
        if path in self._below(entry):
            entry.hidden.add(path)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise Refused("NotFound")
        return self.entries[name]

    def _refuse_name(self, name: str) -> None:
        if name in self.entries:
            raise Refused("AlreadyExists")

    # -- life cycle --------------------------------------------------------------------------------

    def create(self, *, name: str, parent: str, limit: int, labels: dict[str, str]) -> None:
        self._refuse_name(name)
        self._require_parent(parent)
        if limit and not self.limits:
            raise Refused("NotSupported")
        self.entries[name] = Entry("active", parent, limit, labels)

    def view(self, *, name: str, parent: str, labels: dict[str, str]) -> None:
        self._refuse_name(name)
        self._require_parent(parent)
        self.entries[name] = Entry("view", parent, 0, labels)

    def _require_parent(self, parent: str) -> None:
        if parent and self._entry(parent).kind != "committed":
            raise Refused("InvalidArgument")

    def commit(self, *, name: str, new: str, durable: bool, labels: dict[str, str]) -> None:
        entry = self._active(name)
        self._refuse_name(new)
        if entry.holds:
            raise Refused("Busy")
        self.entries[new] = self.entries.pop(name)
        entry.kind, entry.labels = "committed", labels

    def _active(self, name: str) -> Entry:
        entry = self._entry(name)
        if entry.kind != "active":
            raise Refused("InvalidArgument")
        return entry

    def rename(self, *, name: str, new: str) -> None:
        self._entry(name)
        self._refuse_name(new)
        self.entries[new] = self.entries.pop(name)
        for entry in self.entries.values():
            if entry.parent == name:
                entry.parent = new

    def update(self, *, name: str, labels: dict[str, str]) -> None:
        self._entry(name).labels = labels

    def resize(self, *, name: str, limit: int) -> None:
        entry = self._active(name)
        if entry.limit and limit >= entry.limit:
            if entry.holds and not self.online and limit > entry.limit:
                raise Refused("NotSupported")
        elif entry.limit or limit:
            if entry.holds:
                raise Refused("Busy")
            if not entry.fits(limit):
                raise Refused("OutOfSpace")
            if limit and not self.limits:
                raise Refused("NotSupported")
        entry.limit = limit

    def rm(self, *, name: str) -> None:
        entry = self._entry(name)
        if self.children(name) or entry.holds:
            raise Refused("Busy")
        del self.entries[name]

    # -- mounts and content ------------------------------------------------------------------------

    def mount(self, *, name: str) -> None:
        self._entry(name).holds += 1

    def umount(self, *, name: str) -> None:
        entry = self._entry(name)
        entry.holds = max(entry.holds - 1, 0)

    def write(self, *, name: str, path: str, size: int, filling: int) -> str:
        """A whole new file; one that does not fit is gone."""
        entry = self._entry(name)
        if entry.kind != "active":
            return "EROFS"
        entry.own.pop(path, None)
        self._hide(entry, path)
        before = dict(entry.own)
        entry.own[path] = (size, filling if size else 0)
        if not entry.fits(entry.limit):
            entry.own = before
            return "ENOSPC"
        return "written"

    def unlink(self, *, name: str, path: str) -> str:
        entry = self._entry(name)
        if path not in self.tree(name):
            return "absent"
        if entry.kind != "active":
            return "EROFS"
        entry.own.pop(path, None)
        self._hide(entry, path)
        return "unlinked"

    def read(self, *, name: str) -> dict[str, list[int]]:
        self._entry(name)
        return {path: list(file) for path, file in sorted(self.tree(name).items())}

    def settle(self, *, name: str, path: str, found: tuple[int, int] | None) -> None:
        """A write or unlink of a file was killed and left this, or nothing."""
        entry = self.entries[name]
        entry.own.pop(path, None)
        self._hide(entry, path)
        if found is not None:
            entry.own[path] = found

    # -- the whole store ---------------------------------------------------------------------------

    def gc(self) -> list[str]:
        return []

    def check(self) -> list[str]:
        return []

    def reopen(self) -> list[str]:
        return []
