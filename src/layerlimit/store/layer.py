"""A layer as an object: an entry of a store, by name, with the store's operations as methods."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from layerlimit.archive import Applied, Change
from layerlimit.limit import Limit, Usage
from layerlimit.store.entry import Info

if TYPE_CHECKING:
    from layerlimit.store.store import Store


class Layer:
    """One entry. It holds no state of its own: every method asks the store by :attr:`name`."""

    __slots__ = ("_store", "name")

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name

    def __repr__(self) -> str:
        return f"<Layer {self.name!r} in {self._store.root}>"

    @property
    def info(self) -> Info:
        """The entry as it is now."""
        return self._store.stat(self.name)

    @property
    def usage(self) -> Usage:
        """Bytes and inodes of its own changes."""
        return self._store.usage(self.name)

    @property
    def limit(self) -> Limit | None:
        """The limit in force."""
        return self._store.limit(self.name)

    def mount(self, *, read_only: bool = False) -> Path:
        """See :meth:`Store.mount`."""
        return self._store.mount(self.name, read_only=read_only)

    def umount(self, *, read_only: bool = False) -> None:
        """See :meth:`Store.umount`."""
        self._store.umount(self.name, read_only=read_only)

    def mounted(self, *, read_only: bool = False) -> AbstractContextManager[Path]:
        """``with layer.mounted() as path:`` – see :meth:`Store.mounted`."""
        return self._store.mounted(self.name, read_only=read_only)

    def resize(self, limit: Limit | None) -> None:
        """See :meth:`Store.resize`."""
        self._store.resize(self.name, limit)

    def changes(self) -> list[Change]:
        """See :meth:`Store.changes`."""
        return self._store.changes(self.name)

    def diff(self) -> BinaryIO:
        """See :meth:`Store.diff`."""
        return self._store.diff(self.name)

    def apply(self, stream: BinaryIO) -> Applied:
        """See :meth:`Store.apply`."""
        return self._store.apply(self.name, stream)

    def commit(self, new: str, *, labels: Mapping[str, str] | None = None, durable: bool = True) -> Layer:
        """Freeze it under the name ``new``, which is returned; this object's name is gone then."""
        return Layer(self._store, self._store.commit(self.name, new, labels=labels, durable=durable).name)

    def rename(self, new: str) -> Layer:
        """See :meth:`Store.rename`; the layer under its new name is returned."""
        return Layer(self._store, self._store.rename(self.name, new).name)

    def rm(self, *, force: bool = False) -> None:
        """See :meth:`Store.rm`."""
        self._store.rm(self.name, force=force)
