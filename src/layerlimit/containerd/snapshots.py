"""Snapshots of one name that containerd knows us by: a class of layers over a namespace of the store.

What containerd asks for is done here, in the store's words; ``service.py`` converts. Commit, update and
remove happen inside containerd's own metadata transaction: they walk, copy and delete nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from layerlimit.containerd.asked import KEYS, Asked, choose, read_asked
from layerlimit.containerd.keys import read_key
from layerlimit.containerd.mapped import mapped_root, mapping_options
from layerlimit.containerd.origins import Containerd, Docker
from layerlimit.errors import Error, InvalidArgument, OutOfSpace, from_os_error
from layerlimit.limit import Limit, Usage
from layerlimit.store import Info, Kind, Store
from layerlimit.union import Mount

#: The limit in force, in bytes: a label that clients read and cannot set.
LIMIT: Final = "layerlimit/limit.bytes"
_APPLIED: Final = "layerlimit/limit.applied"  # what was asked for when the limit was last set; not shown
_COPY: Final = "layerlimit/owners.copied"  # an image whose owners containerd has changed already; not shown
_PENDING: Final = "layerlimit/admission.pending"  # made although there was no room: Mounts asks; not shown
_OURS: Final = frozenset({LIMIT, _APPLIED, _COPY, _PENDING})


@dataclass(frozen=True, slots=True)
class Class:
    """What holds for the layers of one name: the ``default`` limit, and the most that can be asked for."""

    name: str
    default: Limit | None = None
    maximum: int | None = None


class Snapshots:
    """The snapshots of one class. ``store`` is the partition with the class's name."""

    def __init__(
        self, store: Store, kind: Class, *, docker: Docker | None = None, containerd: Containerd | None = None
    ) -> None:
        self._store = store
        self._class = kind
        self._docker = docker
        self._containerd = containerd
        self._synced: set[str] = set()
        self._lock = threading.Lock()

    # -- create ------------------------------------------------------------------------------------

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """A writable snapshot, with the limit that is known of by now. It is removed again on an error."""
        kept = _without_ours(labels)
        owner = mapped_root(kept)
        asks = read_key(key, parent)
        limit = None if asks.is_image_content else self._choose([read_asked(kept)])
        if limit is not None:
            kept[_APPLIED] = _text(limit)
        try:
            info = self._store.create(key, parent, limit=limit, unlimited=limit is None, labels=kept)
        except OutOfSpace:
            if not asks.is_container_of_docker and not asks.is_init_of_docker:
                raise
            # Docker leaks what it made before a Prepare that fails. It uses no mounts of the container's but
            # those of Mounts, which refuses, and then it cleans up.
            noted = {_PENDING: "yes"} if asks.is_container_of_docker else {}
            labels = {**_without_ours(kept), **noted}
            info = self._store.create(key, parent, unlimited=True, labels=labels, admitted=True)
        with self._removed_on_error(key):
            mounts = self._mounts(info)
            _give_to(mounts[-1], owner)
            return mounts

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """A read-only snapshot."""
        kept = _without_ours(labels)
        mapped_root(kept)
        info = self._store.view(key, parent, labels=kept)
        with self._removed_on_error(key):
            return self._mounts(info)

    @contextlib.contextmanager
    def _removed_on_error(self, key: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(Error):
                self._store.rm(key)
            raise

    # -- mount -------------------------------------------------------------------------------------

    def mounts(self, key: str) -> list[Mount]:
        """What to mount to see the snapshot, with the limit that its container asks for by now.

        A container's last mounts before it starts are asked for when its options can be read: from here on it
        has the limit it was asked for with, or does not start.
        """
        info = self._store.stat(key)
        if info.kind is Kind.ACTIVE:
            with self._lock:
                self._synced.discard(info.id)
            info = self._enforce(info)
        return self._mounts(info)

    def _enforce(self, info: Info) -> Info:
        """Give the layer the limit that is asked for, unless it was given that before; OutOfSpace.

        So a limit that somebody changed since, by ``resize`` or a label, outlives a restart of the container.
        Another layer may have taken its place then: the entry as it is now is returned.
        """
        limit = self._wanted(info)
        if limit is None and _PENDING in info.labels:
            self._store.admit()
            self._store.update(info.name, {}, only=[_PENDING])
        if limit is None or (info.labels.get(_APPLIED) == _text(limit) and info.promised):
            return info
        if not _is(self._store.limit(info.name), limit):
            # Detached it can be made larger or smaller by any kernel. One that is in use stays locked: Busy.
            self._store.driver.release(info.id)
            self._store.resize(info.name, limit)
        return self._store.update(info.name, {_APPLIED: _text(limit)}, only=[_APPLIED, _PENDING])

    def _wanted(self, info: Info) -> Limit | None:
        key = read_key(info.name, info.parent)
        if key.is_image_content:
            return None
        asked: list[Asked] = []
        if key.is_container_of_docker:
            if self._docker is not None:
                asked.append(self._docker.asked(key.client))
        elif key.namespace and self._containerd is not None:
            asked += self._containerd.asked(key)
        return self._choose([*asked, read_asked(info.labels)])

    def _choose(self, asked: list[Asked]) -> Limit | None:
        return choose(asked, self._class.default, self._class.maximum)

    def _mounts(self, info: Info) -> list[Mount]:
        options = mapping_options(info.labels)
        if options and info.parent and _COPY in self._store.stat(info.parent).labels:
            options = ()  # mapped once more, all files would be nobody's
        mounts = self._store.mounts(info.name, info=info)
        return [replace(mount, options=(*options, *mount.options)) for mount in mounts]

    # -- change ------------------------------------------------------------------------------------

    def synced(self, key: str) -> None:
        """All that was written to the snapshot is on disk: its commit need not wait for that."""
        info = self._store.stat(key)
        with self._lock:
            self._synced.add(info.id)

    def commit(self, key: str, name: str, parent: str, labels: Mapping[str, str]) -> None:
        """Freeze a snapshot under another name, durably. ``parent``, if given, has to be its parent.

        Its image is detached by the reaper.
        """
        info = self._store.stat(key)
        if parent and parent != info.parent:
            above = self._store.stat(parent)
            if above.kind is not Kind.COMMITTED:
                raise InvalidArgument(
                    f"the parent {parent!r} is {above.kind}",
                    hint="commit it first",
                    code="kind.not_committed",
                )
            raise InvalidArgument(
                f"layer {key!r} stands on {info.parent!r} and not on {parent!r}",
                hint="prepare it over the parent; parents cannot be changed",
                code="parent.other",
            )
        with self._lock:
            synced = info.id in self._synced
        kept = _without_ours(labels)
        if read_key(key, info.parent).is_copy_of_image:
            kept[_COPY] = "yes"
        self._store.commit(key, name, labels=kept, synced=synced)
        with self._lock:
            self._synced.discard(info.id)

    def remove(self, key: str) -> None:
        """Forget a snapshot; its files are deleted later."""
        info = self._store.stat(key)
        self._store.rm(key, info=info)
        with self._lock:
            self._synced.discard(info.id)

    def update(self, key: str, labels: Mapping[str, str], only: Collection[str] | None) -> Info:
        """Replace the labels, or those of ``only``. A label that sets a limit sets it now."""
        info = self._store.stat(key)
        given = _without_ours(labels)
        if only is None:
            after = given
        else:
            after = {k: v for k, v in info.labels.items() if k not in only}
            after |= {k: v for k, v in given.items() if k in only}
        applied = info.labels.get(_APPLIED, "")
        if any(info.labels.get(key, "") != after.get(key, "") for key in KEYS):
            applied = self._relimit(info, after, applied)
        # All that is replaced but our own note, which clients do not know.
        keys = ({*info.labels, *given} if only is None else set(only)) - _OURS | {_APPLIED}
        return self._shown(self._store.update(key, {**given, _APPLIED: applied}, only=keys))

    def _relimit(self, info: Info, labels: Mapping[str, str], applied: str) -> str:
        """Give a layer the limit of its new labels; returns what to note about it."""
        if info.kind is not Kind.ACTIVE or read_key(info.name, info.parent).is_image_content:
            return applied
        asked = read_asked(labels)
        if asked == Asked():
            return applied
        limit = self._choose([asked])
        assert limit is not None  # a size was asked for, or inodes beside a default
        if not _is(self._store.limit(info.name), limit):
            self._store.resize(info.name, limit)
        before = self._choose([read_asked(info.labels)])
        return _text(limit) if not applied or (before is not None and applied == _text(before)) else applied

    # -- look --------------------------------------------------------------------------------------

    def stat(self, key: str) -> Info:
        """A snapshot with its labels, the limit in force among them."""
        return self._with_limit(self._store.stat(key))

    def list(self, *filters: str) -> list[Info]:
        """The snapshots that match any of the filters, as :meth:`stat` has them."""
        return [self._with_limit(info) for info in self._store.ls(*filters)]

    def usage(self, key: str) -> Usage:
        """Bytes and inodes of the snapshot itself."""
        return self._store.usage(key)

    def clean_up(self) -> None:
        """Delete what was removed."""
        self._store.reaper.run(everywhere=False)

    def _shown(self, info: Info) -> Info:
        return replace(info, labels=_without_ours(info.labels))

    def _with_limit(self, info: Info) -> Info:
        shown = self._shown(info)
        if info.kind is Kind.ACTIVE and info.promised:
            shown.labels[LIMIT] = str(info.promised)
        return shown


def _without_ours(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if key not in _OURS}


def _text(limit: Limit) -> str:
    return f"{limit.bytes}/{limit.inodes or ''}"


def _is(limit: Limit | None, wanted: Limit) -> bool:
    return limit is not None and limit.bytes == wanted.bytes and wanted.inodes in (None, limit.inodes)


def _give_to(mount: Mount, owner: tuple[int, int] | None) -> None:
    """Let the layer's top directory belong to ``owner``, or to the owner of its parent's."""
    options = dict(option.partition("=")[::2] for option in mount.options)
    upper = options.get("upperdir", mount.source)
    try:
        if owner is None:
            if "lowerdir" not in options:
                return
            above = os.stat(options["lowerdir"].partition(":")[0])
            owner = above.st_uid, above.st_gid
        found = os.stat(upper)
        if (found.st_uid, found.st_gid) != owner:
            os.chown(upper, *owner)
    except OSError as error:
        raise from_os_error(error, f"give {upper} to its owner") from error
