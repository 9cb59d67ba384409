"""Making the mount of a layer, proving it, and giving it up when nobody holds it any more.

A *key* names one mount below ``mnt/``: a layer's id, or ``<id>@ro`` for its read-only view. A view is
treated as a child of its layer that has no upper.

Order, and what a crash leaves: the hold is recorded → images are attached, the layer's own and those of
limited ancestors → the union is mounted. A recorded hold without its mount does not count, and an image
that nobody needs is detached by the next :meth:`Mounter.settle` or sweep. Giving up goes backwards.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from layerlimit.driver.holds import Holds
from layerlimit.driver.layout import Layout
from layerlimit.driver.locks import Held
from layerlimit.driver.records import Layer, Records
from layerlimit.driver.removal import delete_tree
from layerlimit.errors import Busy, Corrupt, Error, NotFound, from_os_error
from layerlimit.limit import Limiter, Place, Record
from layerlimit.linux import files, mount, xattr
from layerlimit.linux.statfs import statfs
from layerlimit.linux.statx import is_mount_point, statx
from layerlimit.union import Stack, Union

VIEW = "@ro"
STAGE = "apply"  # beside overlay's own directory in a work directory: the next content of a layer


def layer_of(key: str) -> str:
    """The id of the layer that a key shows."""
    return key.removesuffix(VIEW)


def _overlay_id(upper: Path) -> int | None:
    """The file-system id that an overlay with this upper reports: ``uuid_to_fsid`` of its attribute."""
    raw = xattr.find_xattr(os.fsencode(upper), b"trusted.overlay.uuid")
    if raw is None or len(raw) != 16:
        return None
    return int.from_bytes(raw[:8], "little") ^ int.from_bytes(raw[8:], "little")


class Mounter:
    """The mounts of one root. The caller holds the lock of the key's layer in every call."""

    def __init__(
        self, layout: Layout, union: Union, limiter: Limiter, records: Records, holds: Holds
    ) -> None:
        self._layout = layout
        self._union = union
        self._limiter = limiter
        self._records = records
        self._holds = holds

    # -- what is there -----------------------------------------------------------------------------

    def is_up(self, key: str) -> bool:
        """Whether the kernel shows the mount of ``key``; a plain base layer has none and is always up."""
        if self._union.is_mounted(self._layout.mnt(key)):
            return True
        if key.endswith(VIEW) or not self._records.exists(key):
            return False
        if self._records.chain(key):
            return False
        # A limited base is seen at its bind: an image that a killed process attached half-way is no mount.
        return not self._is_limited(key) or is_mount_point(self._layout.diff(key))

    def _is_limited(self, id: str) -> bool:
        return self._records.record(id) is not None

    def is_mounted(self, layer: Layer, key: str) -> bool:
        """Whether people would say that it is mounted; a plain base is while somebody holds it."""
        if layer.chain or key.endswith(VIEW):
            return self.is_up(key)
        if layer.record is not None:
            return is_mount_point(self._layout.place(layer.id))
        return self._holds.count(key) > 0

    def count(self, key: str) -> int:
        """Persistent holds that count: those of a mount that is there, and 1 for one without a record."""
        if not self.is_up(key):
            return 0
        count = self._holds.count(key)
        if count or not is_mount_point(self._layout.mnt(key)):
            return count
        return int(not self._holds.live_processes(key) and not self._holds.of_engine(key))

    def is_held(self, key: str) -> bool:
        """Whether anybody uses the mount of ``key`` or, for a layer, its image."""
        return (
            (self.is_up(key) and self._holds.count(key) > 0)
            or self._holds.live_processes(key) > 0
            or self._holds.of_engine(key)
            or self._holds.needed_by_child(key, self.is_up)
        )

    def path(self, layer: Layer, *, view: bool = False) -> Path:
        """Where the layer is seen once it is mounted."""
        if view:
            return self._layout.mnt(layer.id + VIEW)
        return self._layout.mnt(layer.id) if layer.chain else self._layout.diff(layer.id)

    # -- mount -------------------------------------------------------------------------------------

    def bring_up(self, layer: Layer, held: Held, *, view: bool = False) -> Path:
        """Have the layer (or its view) mounted and proven; returns the path. Leaves no half on failure."""
        key = layer.id + VIEW if view else layer.id
        was_up = False
        try:
            was_up = layer.record is not None and self.is_up(key)
            stack = self.stack(layer, key, held, view=view)
            target = self.path(layer, view=view)
            # Not "is a mount": a union that a killed process left half-made is mounted anew.
            if (view or layer.chain) and not self._union.is_mounted(target):
                target.mkdir(mode=0o755, exist_ok=True)
                if stack.upper is not None and layer.record is None:
                    self._union.check_backing(stack.upper)
                # Should somebody unmount this behind our back, the path must not turn into host disk.
                files.set_immutable(target, True)
                self._union.mount(stack, target)
            if view or layer.chain:
                self._prove(layer, target, stack)
            return target
        except OSError as error:
            self._undo(layer, key, held, was_up=was_up)
            raise from_os_error(error, f"mount layer {layer.id}") from error
        except BaseException:
            self._undo(layer, key, held, was_up=was_up)
            raise

    def _prove(self, layer: Layer, target: Path, stack: Stack) -> None:
        """Raise unless what is mounted at ``target`` is this stack, as far as the kernel can tell.

        overlay reports the file-system id of its topmost directory or, since Linux 6.6, one that it keeps
        there in an attribute: both are unique to an image. AUFS reports none (``aufs_statfs`` clears it).
        """
        top = stack.lowers[0] if stack.upper is None else stack.upper
        if stack.upper is None and len(stack.lowers) == 1:
            shown, wanted = statx(target), statx(top)
            proven = (shown.device, shown.ino) == (wanted.device, wanted.ino)
        else:
            proven = statfs(target).name == self._union.name
            if layer.record is not None:
                here, want = os.statvfs(target), os.statvfs(top)
                same = here.f_fsid in (want.f_fsid, _overlay_id(top)) if here.f_fsid else True
                proven = proven and same and here.f_blocks == want.f_blocks
        if not proven:
            raise Corrupt(
                f"something else is mounted at {target}, where layer {layer.id} belongs",
                hint=f"unmount {target} and try again",
                code="layer.foreign_mount",
            )

    def _undo(self, layer: Layer, key: str, held: Held, *, was_up: bool) -> None:
        """After a failed mount: give up what was attached for it alone, and keep the first error."""
        try:
            if not was_up and not is_mount_point(self._layout.mnt(key)):
                self._holds.set_count(key, 0)
                self.settle(layer, held, key)
        except Error:
            pass

    def stack(self, layer: Layer, key: str, held: Held, *, view: bool = False, bind: bool = True) -> Stack:
        """Attach every image that ``key`` needs, proven, and say which directories make it up.

        Without ``bind`` the image to write to is not shown at ``diff/<id>``, which the stack does not name.
        """
        limited = [id for id in layer.chain if self._is_limited(id)]
        held.add(limited)
        for id in limited:
            self._attach(id, self._records.record(id), key, read_only=True)
        lowers = tuple(map(self._directory, layer.chain))
        if view:
            if layer.record is not None:
                self._attach(layer.id, layer.record, key, read_only=True)
            return Stack((self._directory(layer.id), *lowers))
        if layer.record is None:
            upper = self._directory(layer.id)
            work = self._layout.work(layer.id)
            if upper.is_symlink():  # migrated from another disk, where its work directory has to be as well
                work = upper.resolve().parent / f".layerlimit-work-{layer.id}"
            work.mkdir(mode=0o711, exist_ok=True)
            delete_tree(f"{work}/{STAGE}")
            return Stack(lowers, upper, work)
        place = self._attach(layer.id, layer.record, "", read_only=False, bind=bind)
        if place.work is not None:
            delete_tree(f"{place.work}/{STAGE}")
        return Stack(lowers, place.upper, place.work)

    def _directory(self, id: str) -> Path:
        path = self._layout.diff(id)
        if not os.path.isdir(path):
            raise Corrupt(
                f"the content of layer {id} is gone: {path} is missing",
                hint="restore it, or remove the layer",
                code="layer.diff_missing",
            )
        return path

    def _attach(
        self, id: str, record: Record | None, child: str, *, read_only: bool, bind: bool = True
    ) -> Place:
        assert record is not None
        if child:
            self._holds.add_child(id, child)
        place = self._limiter.attach(id, record, read_only=read_only, bind=bind)
        if place.fresh:
            self._drop_stale(id)
        return place

    def heal(self, layer: Layer) -> None:
        """Detach a degraded image that nobody uses: attaching it again repairs it."""
        if layer.record is None or self._limiter.health(layer.id).state != "degraded":
            return
        if not self.is_held(layer.id) and not is_mount_point(self._layout.mnt(layer.id)):
            self._detach_image(layer.id)

    def _drop_stale(self, id: str) -> None:
        """A union over an image that was not attached shows a file that is no longer this layer's image."""
        for key in (id, id + VIEW):
            target = self._layout.mnt(key)
            if is_mount_point(target):
                try:
                    self._union.unmount(target)
                except Busy as error:
                    raise Busy(
                        f"{target} shows an image of layer {id} that was detached, and is in use",
                        hint="end the processes that use it",
                        code="layer.stale_mount",
                    ) from error

    # -- give up -----------------------------------------------------------------------------------

    def settle(self, layer: Layer, held: Held, *keys: str) -> None:
        """Unmount these keys of the layer if nobody holds them, and detach every image not needed.

        The records of a key go last: as long as they are there, a sweep comes back to what is left.
        """
        idle = [key for key in keys or (layer.id + VIEW, layer.id) if not self._in_use(key)]
        for key in idle:
            self.unmount(key)
            self._release_images(layer, key, held)
        if not self._in_use(layer.id) and not self._in_use(layer.id + VIEW):
            self._drop_stage(layer.id)
            self._detach(layer.id)
        for key in idle:
            self._holds.set_count(key, 0)
            self._holds.forget(key)

    def _drop_stage(self, id: str) -> None:
        """Delete what a killed apply had made; an image that is not attached loses it when it is used."""
        for work in (self._layout.work(id), f"{self._layout.place(id)}/work"):
            with contextlib.suppress(OSError):
                delete_tree(f"{work}/{STAGE}")

    def _in_use(self, key: str) -> bool:
        return (
            (self.is_up(key) and self._holds.count(key) > 0)
            or self._holds.live_processes(key) > 0
            or self._holds.of_engine(key)
        )

    def unmount(self, key: str) -> None:
        """Unmount the union of ``key``, however often it was mounted; Busy when it is in use."""
        target = self._layout.mnt(key)
        try:
            while is_mount_point(target):
                self._union.unmount(target)
            if target.is_dir() and not target.is_symlink() and not self._stays_shut(layer_of(key)):
                files.set_immutable(target, False)
        except OSError as error:
            raise from_os_error(error, f"unmount layer {layer_of(key)}") from error

    def _stays_shut(self, id: str) -> bool:
        """Whether the bare directories of a layer stay immutable while nothing is mounted on them.

        Those of a limited layer do until it is removed: no path that was ever handed out may turn into host
        disk. In a root of the Go driver, which knows no such flag, they do not.
        """
        if self._layout.go:
            return False
        try:
            return self._is_limited(id)
        except NotFound:
            return False
        except Error:
            return True

    def _release_images(self, layer: Layer, key: str, held: Held) -> None:
        below = [id for id in layer.chain if self._holds.has_child(id, key)]
        if key.endswith(VIEW):
            self._holds.drop_child(layer.id, key)
        held.add(below)
        for id in below:
            self._holds.drop_child(id, key)
            if not self.is_held(id):
                self._detach(id)

    def _detach(self, id: str) -> None:
        if self._holds.needed_by_child(id, self.is_up):
            self._end_writing(id)
            return
        self._detach_image(id)
        self._holds.clear(id)

    def _end_writing(self, id: str) -> None:
        """Nobody holds the layer any more, and it stays attached below its children: have it read-only.

        Not while an engine that had it mounted still writes: that goes on until it is unmounted. Nor in a
        root of the Go driver, which would not make it writable again.
        """
        if self._layout.go:
            return
        place = self._layout.place(id)
        with contextlib.suppress(OSError):
            if is_mount_point(place) and not statfs(place).read_only:
                mount.make_read_only(place)

    def _detach_image(self, id: str) -> None:
        self._limiter.detach(id)
        if self._layout.go and self._layout.diff(id).is_dir():
            files.set_immutable(self._layout.diff(id), False)

    def take_down(self, layer: Layer, held: Held) -> None:
        """Unmount and detach the layer whatever the records say; Busy, with the layer kept, when in use."""
        for key in (layer.id + VIEW, layer.id):
            self.unmount(key)
            self._release_images(layer, key, held)
        self._holds.clear(layer.id + VIEW)
        if self._holds.needed_by_child(layer.id, self.is_up):  # one that could not be taken down
            self._holds.set_count(layer.id, 0)
            self._holds.set_engine(layer.id, False)
            return
        self._detach_image(layer.id)
        self._holds.clear(layer.id)
