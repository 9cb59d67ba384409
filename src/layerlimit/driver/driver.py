"""The driver: one root directory, one union, one limiter; the graph-driver interface of the Go package."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from layerlimit.archive import Applied, Change
from layerlimit.archive import Limits as ArchiveLimits
from layerlimit.archive import usage as tree_usage
from layerlimit.driver.content import Content
from layerlimit.driver.creation import Creation
from layerlimit.driver.holds import Holds
from layerlimit.driver.layout import check_id, prepare
from layerlimit.driver.locks import Held, Locks
from layerlimit.driver.migration import Migration
from layerlimit.driver.mounting import VIEW, Mounter, layer_of
from layerlimit.driver.opening import check_form, check_owner, choose_union
from layerlimit.driver.records import Layer, Records
from layerlimit.driver.removal import Removal
from layerlimit.driver.sweep import Sweep
from layerlimit.errors import (
    AlreadyExists,
    Busy,
    Error,
    InvalidArgument,
    NotFound,
    NotSupported,
    from_os_error,
)
from layerlimit.limit import MIB, Health, ImageLimiter, Limit, Record, Usage
from layerlimit.limit import limiter as make_limiter
from layerlimit.linux import files
from layerlimit.linux.statfs import statfs
from layerlimit.linux.statx import is_mount_point
from layerlimit.union import Mount, Union


@dataclass(frozen=True, slots=True)
class State:
    """How a layer is at this moment: ``mounted``, how many persistent and process ``holds``, its ``health``.

    ``recovered`` names what a repair could only put into ``lost+found``; it uses up the limit unseen.
    """

    mounted: bool
    holds: int
    processes: int
    health: Health
    recovered: tuple[str, ...]


class Driver:
    """Layers below ``root``: create, mount, measure, export, remove.

    ``union`` is ``overlay``, ``aufs`` or ``auto`` (what the root has, else the first that works here), or a
    union object; ``limiter`` is ``image``, ``none`` or ``auto``. ``owner`` is the uid and gid that the top
    directory of a new layer belongs to, the mapped root of a user namespace.

    Any number of drivers, threads and processes may use one root at once. Opening finishes or undoes what a
    killed process left half-done; ``swept`` says whether it looked for that, after a boot or a death. Raises
    NotSupported when the kernel or the root's form does not fit, PermissionDenied without root.

    Every method raises the typed errors of :mod:`layerlimit`; a failed call has changed nothing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        union: str | Union = "auto",
        limiter: str = "auto",
        *,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        self.root = Path(root).absolute()
        self.owner = check_owner(owner)
        self._union = choose_union(self.root, union)
        if limiter not in ("auto", "none", "image"):
            make_limiter(limiter, self.root)
        self._limiter_name = "image" if limiter == "auto" else limiter
        check_form(self.root, self._union.name)
        layout = prepare(self.root, self._union.name)
        check_form(self.root, self._union.name)  # somebody else may have been faster
        self._layout = layout
        self._limiter = ImageLimiter(self.root)
        self._locks = Locks(layout.lock)
        self._records = Records(layout)
        self._holds = Holds(layout.holds)
        self._mounter = Mounter(layout, self._union, self._limiter, self._records, self._holds)
        self._creation = Creation(layout, self._records, self._limiter, self.owner)
        self._removal = Removal(layout, self._records)
        self._content = Content(
            layout, self._union, self._locks, self._records, self._holds, self._mounter, self._limiter
        )
        self._sweep = Sweep(
            layout, self._locks, self._records, self._removal, self._holds, self._mounter, self._limiter
        )
        self.swept = self._sweep.at_opening()

    def close(self, *, failed: bool = False) -> None:
        """Let go of the root, so that its disk can be unmounted. Mounts stay. Not used afterwards.

        ``failed``: whoever opened it for a purpose could not carry it out; the next opening sweeps.
        """
        self._sweep.close(failed=failed)

    def __str__(self) -> str:
        return self._union.name

    @property
    def union(self) -> str:
        """The name of the union in use."""
        return self._union.name

    @property
    def limiter(self) -> str:
        """The name of the limiter for new layers, ``none`` when limits are refused."""
        return self._limiter_name

    # -- create and remove -------------------------------------------------------------------------

    def create(self, id: str, parent: str = "", *, limit: Limit | None = None) -> None:
        """Make the layer ``id`` over ``parent`` (a base when ``""``), writable up to ``limit``.

        On return the layer is durable; after a crash before that it is whole or not there. Raises
        AlreadyExists, NotFound (parent), InvalidArgument, OutOfSpace, NotSupported (limiter ``none``).
        """
        check_id(id)
        if limit is not None and self._limiter_name == "none":
            raise NotSupported(
                f"layer {id} cannot have a limit: this driver was opened with limiter none",
                hint="open it with limiter image",
                code="limiter.none",
            )
        with self._locks.hold(id) as held:
            if self._records.exists(id):
                raise AlreadyExists(
                    f"layer {id} exists already", hint="choose another id", code="layer.exists"
                )
            chain: tuple[str, ...] = ()
            if parent:
                check_id(parent)
                held.add([parent], exclusive=False)
                chain = (parent, *self._parent_chain(parent))
            self._removal.clear_leftovers(id)
            try:
                self._creation.make(id, chain, limit)
            except BaseException:
                if not self._records.exists(id):
                    self._records.unstage_chain(id)
                    self._records.forget_child(parent, id)
                    self._removal.clear_leftovers(id)
                raise

    def _parent_chain(self, parent: str) -> tuple[str, ...]:
        try:
            return self._records.chain(parent)
        except NotFound as error:
            raise NotFound(f"there is no layer {parent} to be the parent", code="layer.not_found") from error

    def create_with_quota(self, id: str, parent: str, quota: int) -> None:
        """:meth:`create` with a limit of ``quota`` MiB, 0 meaning none; negative is InvalidArgument."""
        if quota < 0:
            raise InvalidArgument(
                f"a quota of {quota!r} MiB is not possible", hint="use 0 for no limit", code="limit.range"
            )
        self.create(id, parent, limit=Limit(quota * MIB) if quota else None)

    def remove(self, id: str, *, force: bool = True) -> None:
        """Unmount and remove the layer; NotFound when it is not there.

        Persistent holds end with it, unless ``force`` is False: then they make it Busy. Busy also when it
        has children, a process hold lives, or the kernel says that it is in use; then the
        layer is kept. After a crash it is whole, or gone and swept at the next opening.
        """
        check_id(id)
        with self._locks.hold(id) as held:
            layer = self._records.load_damaged(id)
            children = self._records.children(id)
            if children:
                raise Busy(
                    f"layer {id} is the parent of {', '.join(children[:3])}"
                    + (f" and {len(children) - 3} more" if len(children) > 3 else ""),
                    hint="remove those first",
                    code="layer.has_children",
                )
            if self._holds.live_processes(id) or self._holds.live_processes(id + VIEW):
                raise Busy(
                    f"layer {id} is in use by a running process", hint="end it first", code="layer.held"
                )
            if not force and (self._mounter.count(id) or self._mounter.count(id + VIEW)):
                raise Busy(f"layer {id} is mounted", hint="unmount it first", code="layer.held")
            self._mounter.take_down(layer, held)
            entry = self._removal.discard(id)
            self._records.forget_child(layer.parent, id)
        self._removal.delete(entry)

    def lose(self, id: str) -> Path:
        """Take a layer out like :meth:`remove`, but keep its pieces in ``lost/``; returns where."""
        check_id(id)
        with self._locks.hold(id) as held:
            layer = self._records.load_damaged(id)
            self._mounter.take_down(layer, held)
            entry = self._removal.discard(id)
            self._records.forget_child(layer.parent, id)
            try:
                return self._layout.lose(entry)
            except OSError as error:
                raise from_os_error(error, f"keep layer {id}") from error

    # -- mount -------------------------------------------------------------------------------------

    def get(self, id: str, *, read_only: bool = False) -> Path:
        """Mount the layer and return where; a persistent hold that ends with :meth:`put`, or the boot.

        The same path for every caller; a base layer is its own directory. A limited layer is proven to be
        on its own image on every call. ``read_only`` returns a view that cannot be written.
        """
        key = check_id(id) + VIEW if read_only else check_id(id)
        with self._locks.hold(id) as held:
            layer = self._load_to_mount(id)
            count = self._mounter.count(key)
            self._holds.set_count(key, count + 1)
            try:
                path = self._mounter.bring_up(layer, held, view=read_only)
            except BaseException:
                self._holds.set_count(key, count)
                raise
            return path

    def put(self, id: str, *, read_only: bool = False) -> None:
        """Give up one :meth:`get`, or what :meth:`mounts` attached; the last one unmounts.

        Without either it does nothing. Busy when the kernel will not unmount; the hold is then kept.
        """
        check_id(id)
        with self._locks.hold(id) as held:
            layer = self._records.load_damaged(id)
            key = id + VIEW if read_only or not self._mounter.count(id) else id
            count = self._mounter.count(key)
            if not count and not read_only and self._holds.of_engine(id):
                self._release(layer, held)
                return
            self._holds.set_count(key, max(count - 1, 0))
            try:
                if count <= 1:
                    self._mounter.settle(layer, held, key)
            except Busy:
                self._holds.set_count(key, count)
                raise

    @contextlib.contextmanager
    def mounted(self, id: str, *, read_only: bool = False) -> Iterator[Path]:
        """The layer, mounted for the length of a ``with`` block: a hold that dies with the process."""
        key = check_id(id) + VIEW if read_only else check_id(id)
        with contextlib.ExitStack() as undo:
            with self._locks.hold(id) as held:
                layer = self._load_to_mount(id)
                hold = self._holds.of_process(key)
                undo.callback(self._end_process_hold, id, hold.close)
                path = self._mounter.bring_up(layer, held, view=read_only)
            yield path

    def _load_to_mount(self, id: str) -> Layer:
        """The layer, after finishing an interrupted resize and detaching a degraded image nobody uses."""
        layer = self._records.load(id)
        self._mounter.heal(layer)
        if layer.record is not None and layer.record.growing is not None:
            try:
                self._grow(layer.id, layer.record, layer.record.growing)
            except NotSupported as error:
                if error.code != "resize.online":
                    raise
                # It is mounted, where it cannot grow: what was interrupted was taken back just now.
            layer = self._records.load(id)
        return layer

    def _end_process_hold(self, id: str, close: Callable[[], None]) -> None:
        with self._locks.hold(id) as held:
            close()
            if self._records.exists(id):
                self._mounter.settle(self._records.load(id), held)

    def mounts(self, id: str, *, read_only: bool = False) -> list[Mount]:
        """What an engine has to mount to see the layer. Its images are attached, nothing is mounted.

        That of a limited layer to write to is at ``img/<id>`` alone: ``diff/<id>`` shows it once it is read
        here.
        They stay attached until :meth:`release` (or a :meth:`put` without a get), :meth:`remove`,
        :meth:`cleanup` or the boot; call again after a reboot.
        """
        key = check_id(id) + VIEW if read_only else check_id(id)
        with self._locks.hold(id) as held:
            layer = self._load_to_mount(id)
            before = self._holds.of_engine(key)
            self._holds.begin_engine(key)
            try:
                mounts = self._union.mounts(self._mounter.stack(layer, key, held, view=read_only, bind=False))
                if not before:
                    self._holds.set_engine(key, True)
                return mounts
            except BaseException:
                self._holds.set_engine(key, before)
                self._mounter.settle(layer, held)
                raise

    def release(self, id: str) -> None:
        """Take back what :meth:`mounts` attached; Busy while a process uses it directly.

        What an engine still has mounted goes on until it is unmounted, on the same image, within its limit.
        """
        check_id(id)
        with self._locks.hold(id) as held:
            self._release(self._records.load_damaged(id), held)

    def _release(self, layer: Layer, held: Held) -> None:
        keys = [key for key in (layer.id, layer.id + VIEW) if self._holds.of_engine(key)]
        try:
            for key in keys:
                self._holds.set_engine(key, False)
            self._mounter.settle(layer, held)
        except Busy:
            for key in keys:
                self._holds.set_engine(key, True)
            raise

    def sync(self, id: str, *, opened: int | None = None) -> None:
        """Make everything written to the layer durable: its image, or the root's file system, is synced.

        ``opened`` is a descriptor in the layer from before the first write: no failure since is missed, even
        if somebody else's sync of that file system was told of it.
        """
        with self._locks.hold(check_id(id)):
            layer = self._records.load(id)
            try:
                if opened is not None:
                    files.sync_file_system_of(opened, self._layout.diff(id))
                if layer.record is not None:
                    self._limiter.sync(id)
                elif opened is None:
                    files.sync_file_system(self._layout.diff(id))
            except OSError as error:
                raise from_os_error(error, f"sync layer {id}") from error

    # -- look --------------------------------------------------------------------------------------

    def exists(self, id: str) -> bool:
        """Whether the layer is there; False for what cannot be an id."""
        return self._records.exists(id)

    def ids(self) -> list[str]:
        """All layers, sorted."""
        return self._records.ids()

    def is_mounted(self, id: str) -> bool:
        """Whether the kernel shows a mount of the layer or of its view, at this moment; never waits."""
        return any(map(is_mount_point, self._layout.shown(check_id(id))))

    def parent(self, id: str) -> str:
        """The parent's id, ``""`` for a base; NotFound."""
        chain = self._records.chain(check_id(id))
        return chain[0] if chain else ""

    def chain(self, id: str) -> tuple[str, ...]:
        """The ancestors' ids, nearest first; NotFound."""
        return self._records.chain(check_id(id))

    def is_empty(self, id: str) -> bool:
        """Whether nothing was ever written to the layer."""
        if self._records.load(check_id(id)).record is not None:
            return self.usage(id) == Usage(0, 0)
        try:
            return not os.listdir(self._layout.diff(id))
        except OSError as error:
            raise from_os_error(error, f"look into layer {id}") from error

    def limit(self, id: str) -> Limit | None:
        """The limit in force, None when there is none; NotFound, Corrupt."""
        if not self._records.exists(check_id(id)):
            self._records.chain(id)  # says so
        record = self._records.record(id)
        return None if record is None else record.limit

    def usage(self, id: str) -> Usage:
        """What the layer itself uses: in constant time when it is limited, else by walking its changes."""
        with self._locks.hold(check_id(id)):
            layer = self._records.load(id)
            try:
                if layer.record is not None:
                    return self._limiter.usage(id, layer.record)
            except OSError as error:
                raise from_os_error(error, f"measure layer {id}") from error
        try:  # without the lock: a walk takes its time, and nobody may wait for it
            walked = tree_usage(self._layout.diff(id))
            return Usage(walked.bytes, walked.inodes)
        except OSError as error:
            raise from_os_error(error, f"measure layer {id}") from error

    def state(self, id: str) -> State:
        """Whether the layer is mounted, held and healthy."""
        with self._locks.hold(check_id(id)):
            layer = self._records.load(id)
            health = Health("ok") if layer.record is None else self._limiter.health(id)
            recovered = () if layer.record is None else tuple(self._limiter.recovered(id))
            holds, processes = self._users(id)
            return State(
                mounted=any(self._mounter.is_mounted(layer, key) for key in (id, id + VIEW)),
                holds=holds,
                processes=processes,
                health=health,
                recovered=recovered,
            )

    def users(self, id: str) -> tuple[int, int]:
        """How many persistent and process holds the layer has; NotFound, Corrupt."""
        with self._locks.hold(check_id(id)):
            self._records.load(id)
            return self._users(id)

    def _users(self, id: str) -> tuple[int, int]:
        keys = (id, id + VIEW)
        return sum(map(self._mounter.count, keys)), sum(map(self._holds.live_processes, keys))

    def inspect_image(self, id: str, *, deep: bool = False) -> list[tuple[str, str]]:
        """What is not as it should be with a limited layer, as stable codes and sentences; [] when unlimited.

        ``deep`` also reads the whole file system, if it is not mounted. Corrupt for what cannot be used.
        """
        with self._locks.hold(check_id(id)):
            layer = self._records.load(id)
            if layer.record is None:
                return []
            return self._limiter.inspect(id, layer.record, deep=deep)

    def is_recorded(self, key: str) -> bool:
        """Whether somebody is recorded to hold the mount ``mnt/<key>``."""
        with self._locks.hold(layer_of(key)):
            return self._mounter.is_held(key)

    def status(self) -> list[tuple[str, str]]:
        """Rows for people: root, number of layers, backing file system, how limits are enforced."""
        degraded = [id for id in self._limited_ids() if self._limiter.health(id).state == "degraded"]
        ephemeral = [id for id in self._limited_ids() if self._is_ephemeral(id)]
        rows = [
            ("Root Dir", str(self.root)),
            ("Dirs", str(len(self.ids()))),
            ("Backing Filesystem", statfs(self.root).name),
            *self._union.status(),
            ("Limiter", self._limiter_name),
        ]
        if degraded:
            rows.append(("Degraded", ", ".join(degraded)))
        if ephemeral:
            rows.append(("Ephemeral (no journal)", ", ".join(ephemeral)))
        return rows

    def _limited_ids(self) -> list[str]:
        return [id for id in self.ids() if os.path.lexists(self._limiter.image(id))]

    def _is_ephemeral(self, id: str) -> bool:
        with contextlib.suppress(Error):
            record = self._records.record(id)
            return record is not None and record.limit.ephemeral
        return False

    # -- limits ------------------------------------------------------------------------------------

    def resize(self, id: str, limit: Limit) -> None:
        """Raise the limit of a limited layer; running users see it at once.

        NotSupported (code ``resize.online``) where the kernel cannot grow it mounted: put it and call again.
        InvalidArgument to shrink, or for a layer without a limit. A crash leaves the old limit or the new.
        """
        with self._locks.hold(check_id(id)):
            layer = self._records.load(id)
            if layer.record is None:
                raise InvalidArgument(
                    f"layer {id} was made without a limit and cannot get one",
                    hint="create a child of it with a limit",
                    code="resize.unlimited",
                )
            self._mounter.heal(layer)
            old = layer.record.limit
            inodes = limit.inodes or old.inodes
            wanted = replace(limit, inodes=inodes, ephemeral=old.ephemeral, reserve=old.reserve)
            self._grow(id, layer.record, wanted)

    def _grow(self, id: str, record: Record, limit: Limit) -> None:
        """Grow with the intent on record first: a crash in between is finished by the next use."""
        before = replace(record, growing=None)
        try:
            size = self._limiter.size(id)
            self._records.write_record(id, replace(record, growing=limit))
            try:
                after = self._limiter.resize(id, record, limit)
            except Error:
                # What has grown and could not be made durable stays on record, for the next use to finish.
                if self._limiter.size(id) == size:
                    self._records.write_record(id, before)
                raise
            self._records.write_record(id, after)
        except OSError as error:
            raise from_os_error(error, f"resize layer {id}") from error

    # -- content -----------------------------------------------------------------------------------

    def diff(self, id: str) -> BinaryIO:
        """The layer's own changes as a readable stream of an uncompressed OCI layer tar; close it."""
        return self._content.diff(check_id(id))

    def apply_diff(self, id: str, stream: BinaryIO, *, limits: ArchiveLimits | None = None) -> int:
        """Apply a layer tar to a layer that nobody holds; returns the sum of the sizes of its files."""
        return self.apply(id, stream, limits=limits).bytes

    def apply(
        self, id: str, stream: BinaryIO, *, limits: ArchiveLimits | None = None, flat: bool = False
    ) -> Applied:
        """:meth:`apply_diff` that returns all there is to know, such as the diff ID.

        The layer is as it was before, or has all of the tar: also after a crash. ``flat`` carries
        deletions out instead of recording them, for a base that several layer tars make up.
        """
        return self._content.apply(check_id(id), stream, limits=limits or ArchiveLimits(), flat=flat)

    def changes(self, id: str) -> list[Change]:
        """What the layer adds, modifies and deletes over its parent, sorted by path; a base only adds."""
        return self._content.changes(check_id(id))

    def diff_size(self, id: str) -> int:
        """Sum of the apparent sizes of the layer's own files, hard links once."""
        return self._content.size(check_id(id))

    def copy(self, source: str, target: str) -> None:
        """Let ``target``, over the same parent, hold what ``source`` does, exactly and durably.

        Busy when either is in use; OutOfSpace when the limit of ``target`` is too small. What a failure or a
        crash leaves in ``target`` is what was there before.
        """
        self._content.copy(check_id(source), check_id(target))

    def content_id(self, id: str) -> str:
        """A digest of the layer's own changes: names, types, owners, modes, times, attributes, content."""
        return self._content.content_id(check_id(id))

    def lose_path(self, path: Path) -> Path:
        """Move a file that belongs to no layer to ``lost/``; returns where."""
        try:
            return self._layout.lose(path)
        except OSError as error:
            raise from_os_error(error, f"keep {path}") from error

    def migrate(self, path: str | os.PathLike[str], setup_init: Callable[[str], None]) -> None:
        """Take in the layers of a Docker data root from before 0.7: images, then containers. Idempotent."""
        Migration(self, self._layout).run(Path(path), setup_init)

    # -- the whole root ----------------------------------------------------------------------------

    def sweep(self) -> None:
        """Finish or undo what dead processes left; never waits, and skips what somebody works on."""
        self._sweep.everything()

    def cleanup(self) -> None:
        """Unmount everything below the root and end every persistent hold; layers and images stay.

        Busy, naming each layer, when some are in use; the others are unmounted. Idempotent.
        """
        busy: list[Error] = []
        for id in self._records.deepest_first():
            with self._locks.hold(id) as held:
                try:
                    if self._holds.live_processes(id) or self._holds.live_processes(id + VIEW):
                        raise Busy(f"layer {id} is in use by a running process")
                    self._mounter.take_down(self._records.load_damaged(id), held)
                except NotFound:
                    continue
                except Error as error:
                    busy.append(error)
        self.sweep()
        if busy:
            raise Busy(
                "; ".join(error.message for error in busy), hint="end what uses them", code="cleanup.busy"
            )
