"""What is in a layer: export, import, changes, sizes, over the archive engine.

**apply** never touches the layer before it has the whole tar: it works in ``apply/`` beside overlay's own
work directory, on the layer's file system, starting from hard links of what the layer has, and then
exchanges it with the layer's directory in one rename. A crash leaves the layer as it was, and an
``apply/`` that the next use removes.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TypeVar

from layerlimit import archive
from layerlimit.archive import Applied, Change, Form, Limits
from layerlimit.driver.copying import copy_tree
from layerlimit.driver.holds import Holds
from layerlimit.driver.layout import Layout
from layerlimit.driver.locks import Locks
from layerlimit.driver.mounting import STAGE, VIEW, Mounter, layer_of
from layerlimit.driver.records import Layer, Records
from layerlimit.driver.removal import delete_tree
from layerlimit.errors import Busy, NotSupported, from_os_error
from layerlimit.limit import ImageLimiter
from layerlimit.linux import files, xattr
from layerlimit.union import Stack, Union

T = TypeVar("T")


class Content:
    """Reads and changes the content of layers; locks and holds them itself."""

    def __init__(
        self,
        layout: Layout,
        union: Union,
        locks: Locks,
        records: Records,
        holds: Holds,
        mounter: Mounter,
        limiter: ImageLimiter,
    ) -> None:
        self._layout = layout
        self._form = Form(union.form)
        self._locks = locks
        self._records = records
        self._holds = holds
        self._mounter = mounter
        self._limiter = limiter

    # -- read --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self, id: str, *, below: bool) -> Iterator[tuple[Layer, bool]]:
        """The layer (``below``: and its ancestors) readable at ``diff/<id>``, and whether it is live."""
        with ExitStack() as undo:
            with self._locks.hold(id) as held:
                layer = self._records.load(id)
                live = self._mounter.is_held(id)
                ids = (id, *layer.chain) if below else (id,)
                held.add(ids[1:])
                limited = [Layer(each, self._records.chain(each), self._records.record(each)) for each in ids]
                for each in limited:
                    if each.record is not None:
                        hold = self._holds.of_process(each.id)
                        undo.callback(self._end, each.id, hold.close)
                        self._limiter.attach(each.id, each.record, read_only=True)
            yield layer, live

    def _end(self, id: str, close: Callable[[], None]) -> None:
        with self._locks.hold(id) as held:
            close()
            if self._records.exists(id):
                self._mounter.settle(self._records.load(id), held)

    def diff(self, id: str) -> BinaryIO:
        with ExitStack() as undo:
            layer, live = undo.enter_context(self._reading(id, below=True))
            lowers = [self._layout.diff(each) for each in layer.chain]
            stream = archive.read_stream(self._layout.diff(id), form=self._form, lowers=lowers, live=live)
            return _HeldStream(stream.detach(), undo.pop_all())

    def changes(self, id: str) -> list[Change]:
        with self._reading(id, below=True) as (layer, _):
            lowers = [self._layout.diff(each) for each in layer.chain]
            return archive.changes(self._layout.diff(id), lowers, form=self._form)

    def size(self, id: str) -> int:
        with self._reading(id, below=False):
            return archive.size(self._layout.diff(id), form=self._form)

    def content_id(self, id: str) -> str:
        with self._reading(id, below=False):
            sink = open(os.devnull, "wb")  # noqa: SIM115
            with sink:
                return archive.write(self._layout.diff(id), sink, form=self._form, times="ns").diff_id

    # -- write -------------------------------------------------------------------------------------

    def copy(self, source: str, target: str) -> None:
        with self._reading(source, below=False) as (_, live):
            if live:
                raise Busy(
                    f"layer {source} is in use and cannot be copied",
                    hint="unmount it first",
                    code="layer.held",
                )

            def fill(stage: Path, _: Stack) -> None:
                copy_tree(self._layout.diff(source), stage)
                files.sync_file_system(stage)

            self._fill(target, fill, f"copy layer {source}")

    def apply(self, id: str, stream: BinaryIO, *, limits: Limits, flat: bool) -> Applied:
        def fill(stage: Path, stack: Stack) -> Applied:
            assert stack.upper is not None
            owner = os.stat(stack.upper)
            _link_tree(stack.upper, stage)
            return archive.apply(
                stream,
                stage,
                form=Form.FLAT if flat else self._form,
                lowers=stack.lowers,
                owner=(owner.st_uid, owner.st_gid),
                limits=limits,
            )

        return self._fill(id, fill, f"apply a diff to layer {id}")

    def _fill(self, id: str, fill: Callable[[Path, Stack], T], doing: str) -> T:
        """Let what ``fill`` makes durably at a path be the layer's directory, in one step."""
        with self._locks.hold(id) as held:
            layer = self._records.load(id)
            if any(self._mounter.is_held(key) for key in self._users(id)):
                raise Busy(
                    f"layer {id} is in use and cannot take a diff",
                    hint="unmount it, and the layers above it, first",
                    code="layer.held",
                )
            if layer.record is not None and layer.record.rooted:
                raise NotSupported(
                    f"layer {id} is the whole of an image that the Go driver made and cannot take a diff",
                    hint="apply it to a new layer, or convert the root with 'layerlimit migrate'",
                    code="layer.go_image",
                )
            with ExitStack() as undo:
                undo.callback(self._mounter.settle, layer, held)
                # Only so that a sweep finds what is attached, should we be killed.
                undo.enter_context(self._holds.of_process(id))
                key = f"{id}{VIEW}"  # what the ancestors are held for meanwhile
                stack = self._mounter.stack(layer, key, held)
                work = stack.work
                if work is None:
                    work = self._layout.work(id)
                    work.mkdir(mode=0o711, exist_ok=True)
                return self._replace(layer, stack, work / STAGE, fill, doing)

    def _users(self, id: str) -> list[str]:
        """The keys with holds that show the layer: its own, and those of layers above it."""
        return [
            key
            for key in self._holds.known()
            if layer_of(key) == id
            or (self._records.exists(layer_of(key)) and id in self._records.chain(layer_of(key)))
        ]

    def _replace(
        self, layer: Layer, stack: Stack, stage: Path, fill: Callable[[Path, Stack], T], doing: str
    ) -> T:
        upper = stack.upper
        assert upper is not None
        try:
            delete_tree(stage)
            filled = fill(stage, stack)
            if layer.record is not None:
                self._limiter.unbind(layer.id)
            files.exchange(stage, upper)
            files.sync_directory(upper.parent)
            if layer.record is not None:
                self._limiter.attach(layer.id, layer.record)
            return filled
        except OSError as error:
            raise from_os_error(error, doing) from error
        except RecursionError as error:
            raise NotSupported(
                f"layer {layer.id} has directories nested too deep to take a diff",
                hint="remove them, or apply the diff to a new layer",
                code="layer.depth",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                delete_tree(stage)


def _link_tree(source: Path, target: Path) -> None:
    """Copy a tree of directories, with their owners, modes, times and attributes; files are hard links."""
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _link_tree(Path(entry.path), target / entry.name)
            else:
                os.link(entry.path, target / entry.name, follow_symlinks=False)
    _copy_attributes(source, target)


def _copy_attributes(source: Path, target: Path) -> None:
    """Give a directory the owner, extended attributes, mode and times of another."""
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid)
    for name in xattr.list_xattrs(os.fsencode(source)):
        xattr.set_xattr(os.fsencode(target), name, xattr.get_xattr(os.fsencode(source), name))
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


class _HeldStream(io.BufferedReader):
    """A layer tar that gives up the layer when it is closed."""

    def __init__(self, raw: io.RawIOBase, undo: ExitStack) -> None:
        super().__init__(raw, 1 << 20)
        self._undo = undo

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._undo.close()
