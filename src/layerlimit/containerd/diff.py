"""containerd's diff service for our own layers: tars go in and out without a mount, durably.

It answers for mounts that the snapshots service handed out, and says UNIMPLEMENTED to everything else:
containerd then asks the next differ of its list.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from layerlimit import archive
from layerlimit.archive import Form
from layerlimit.archive.compress import Compression
from layerlimit.containerd.content import UNCOMPRESSED, Caller, ContentStore
from layerlimit.containerd.mapped import owners_inside
from layerlimit.containerd.service import status_of
from layerlimit.containerd.wire import descriptor_pb2
from layerlimit.containerd.wire import diff_pb2 as wire
from layerlimit.containerd.workers import give_place
from layerlimit.containerd.writing_out import WritingOut
from layerlimit.errors import Busy, Error, InvalidArgument, NotFound, from_os_error
from layerlimit.store import Info, Kind, Store
from layerlimit.union import Stack

SERVICE: Final = "containerd.services.diff.v1.Diff"
_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
_GZIP: Final = f"{_TAR}+gzip"
_DOCKER: Final = "application/vnd.docker.image.rootfs"
_COMPRESSIONS: Final[dict[str, Compression | None]] = {
    _TAR: None,
    _GZIP: "gzip",
    f"{_TAR}+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": None,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    f"{_DOCKER}.diff.tar": None,
    f"{_DOCKER}.diff.tar.gzip": "gzip",
    f"{_DOCKER}.diff.tar.zstd": "zstd",
    f"{_DOCKER}.foreign.diff.tar": None,
    f"{_DOCKER}.foreign.diff.tar.gzip": "gzip",
}
_MAPS: Final = frozenset({"uidmap", "gidmap"})

log = logging.getLogger("layerlimit.containerd")


class NotOurs(Exception):
    """Another differ has to do this; the text says why."""


def diff_handlers(
    store: Store, content: ContentStore, synced: Callable[[Info], object] = lambda _: None
) -> grpc.GenericRpcHandler:
    """The service over the layers of ``store``, whatever their namespaces; blobs are those of ``content``.

    ``synced`` is told of each snapshot whose content was applied and is on disk.
    """
    differ = Differ(store, content, synced)
    calls = {
        "Apply": _unary(differ.apply, wire.ApplyRequest, wire.ApplyResponse),
        "Diff": _unary(differ.diff, wire.DiffRequest, wire.DiffResponse),
    }
    return grpc.method_handlers_generic_handler(SERVICE, calls)


@dataclass(frozen=True, slots=True)
class Branches:
    """What mounts of ours show: the snapshot, and its directories, topmost first, without a view's own."""

    info: Info
    directories: tuple[Path, ...]


class Differ:
    """Both calls. Any number may run at once."""

    def __init__(self, store: Store, content: ContentStore, synced: Callable[[Info], object]) -> None:
        self._store = store
        self._content = content
        self._synced = synced

    # -- apply -------------------------------------------------------------------------------------

    def apply(self, request: wire.ApplyRequest, context: grpc.ServicerContext) -> wire.ApplyResponse:
        """Extract a blob into a snapshot that nobody has mounted, verify it and sync it.

        It goes straight to the layer: containerd removes the snapshot after a failure.
        """
        _known(request.diff.media_type)
        if request.payloads:
            raise NotOurs(f"payloads for {', '.join(request.payloads)} are not known")
        give_place()
        caller = _caller(context)
        with self._writable(request.mounts) as (info, stack):
            upper = stack.upper
            assert upper is not None
            owner = os.stat(upper)
            with (
                self._content.read(
                    caller, request.diff.digest, request.diff.size, until=context.add_callback
                ) as blob,
                WritingOut(blob, upper) as stream,
            ):
                applied = archive.apply(
                    stream,
                    upper,
                    # A base is mounted without a union, which would show what marks a deletion.
                    form=Form.OVERLAY if _is_union(request.mounts) else Form.FLAT,
                    lowers=stack.lowers,
                    owner=(owner.st_uid, owner.st_gid),
                    durable=False,
                )
                blob.drain()
                self._store.driver.sync(info.id, opened=stream.opened)
            for warning in applied.warnings:
                log.warning("%s: %s", info.name, warning)
        self._synced(info)
        found = descriptor_pb2.Descriptor(media_type=_TAR, digest=applied.diff_id, size=applied.tar_bytes)
        return wire.ApplyResponse(applied=found)

    @contextlib.contextmanager
    def _writable(self, mounts: Sequence[Any]) -> Iterator[tuple[Info, Stack]]:
        """The active layer that these are the mounts of; it is not committed meanwhile."""
        asked = _stack(mounts)
        if asked.upper is None:
            raise NotOurs("the mounts cannot be written to")
        with self._store.reaper.owned(self._find(asked).id):
            info = self._find(asked)
            state = self._store.driver.state(info.id)
            if state.holds or state.processes:
                raise Busy(f"layer {info.name!r} is mounted", hint="unmount it first", code="layer.held")
            yield info, asked

    def _find(self, asked: Stack) -> Info:
        """The snapshot whose mounts, made anew, are these; its images are attached then."""
        top = asked.upper or asked.lowers[0]
        info = self._store.find(_id(self._store.root, top))
        if info is None or info.kind is not (Kind.VIEW if asked.upper is None else Kind.ACTIVE):
            raise NotOurs(f"{top} is not of a snapshot here")
        if self._store.driver.union != "overlay":
            raise NotOurs("layers of an AUFS are not known to this differ")
        try:
            ours = self._store.driver.mounts(info.id, read_only=asked.upper is None)
        except NotFound as error:
            raise NotOurs(str(error)) from error
        if _stack(ours) != asked:
            raise NotOurs(f"the mounts are not those of snapshot {info.name!r}")
        return info

    # -- diff --------------------------------------------------------------------------------------

    def diff(self, request: wire.DiffRequest, context: grpc.ServicerContext) -> wire.DiffResponse:
        """Write what a snapshot, or the one that a view shows, changes of its parent into a blob."""
        give_place()
        media_type = request.media_type or _GZIP
        compression = _known(media_type)
        right = self._branches(request.right)
        left = self._branches(request.left).directories if request.left else ()
        if not right.directories or right.directories[1:] != left:
            raise NotOurs("the mounts are not those of a snapshot and of its parent")
        epoch = request.source_date_epoch.seconds if request.HasField("source_date_epoch") else None
        ref = request.ref or f"layerlimit-{secrets.token_hex(8)}"
        caller = self._content.leased(_caller(context))
        upper, *lowers = right.directories
        with self._content.write(caller, ref, until=context.add_callback) as upload:
            written = archive.write(
                upper,
                upload,
                form=Form.OVERLAY,
                lowers=lowers,
                compression=compression,
                source_date_epoch=epoch,
                live=right.info.kind is Kind.ACTIVE,
                # What a container in a user namespace wrote has other owners on disk than in the container.
                owners=owners_inside(right.info.labels) if right.info.kind is Kind.ACTIVE else None,
            )
            self._still_there(right.info, context)
            labels = {**request.labels, UNCOMPRESSED: written.diff_id}
            if not upload.commit(written.digest, labels):
                self._content.label(caller, written.digest, labels)
        found = descriptor_pb2.Descriptor(
            media_type=media_type, digest=written.digest, size=written.compressed_bytes
        )
        return wire.DiffResponse(diff=found)

    def _branches(self, mounts: Sequence[Any]) -> Branches:
        asked = _stack(mounts, mapped=True)
        info = self._find(asked)
        if asked.upper is not None:
            return Branches(info, (asked.upper, *asked.lowers))
        return Branches(info, asked.lowers[1:])

    def _still_there(self, info: Info, context: grpc.ServicerContext) -> None:
        """Names that vanish while they are read are left out: so do all of a snapshot that is removed."""
        if not context.is_active() or self._store.find(info.id) is None:
            raise Busy(f"layer {info.name!r} was removed meanwhile", hint="try again", code="layer.replaced")


def _known(media_type: str) -> Compression | None:
    if media_type not in _COMPRESSIONS:
        raise NotOurs(f"{media_type} is no layer tar that is known")
    return _COMPRESSIONS[media_type]


def _is_union(mounts: Sequence[Any]) -> bool:
    return bool(mounts[0].type == "overlay")


def _stack(mounts: Sequence[Any], *, mapped: bool = False) -> Stack:
    """The directories of one mount as the snapshots service hands it out, also with ``mapped`` owners."""
    if len(mounts) != 1:
        raise NotOurs(f"{len(mounts)} mounts instead of one")
    mount = mounts[0]
    words = set(mount.options)
    try:
        if mount.type == "bind" and words <= {"ro", "rw", "rbind", "bind"}:
            source = Path(mount.source)
            return Stack((source,)) if "ro" in words else Stack((), source)
        if mount.type == "overlay" and "ro" not in words:
            # Callers append options of their own; a second list of lowers would be mounted in our place.
            names = [option.partition("=")[0] for option in mount.options]
            options = dict(option.partition("=")[::2] for option in mount.options)
            twice = names.count("upperdir") > 1 or names.count("lowerdir") > 1
            if not twice and (mapped or not _MAPS & options.keys()):
                lowers = tuple(map(Path, filter(None, options.get("lowerdir", "").split(":"))))
                return Stack(lowers, Path(options["upperdir"]) if "upperdir" in options else None)
    except InvalidArgument as error:
        raise NotOurs(str(error)) from error
    raise NotOurs(f"a mount of type {mount.type} like this is not handed out here")


def _id(root: Path, path: Path) -> str:
    """The id of the layer that a directory belongs to, by its path alone; nothing is looked up."""
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        raise NotOurs(f"{path} is not below {root}") from None
    match parts:
        case ("diff", id) | ("img", id, "upper"):
            return id
    raise NotOurs(f"{path} is not a layer's directory")


def _caller(context: grpc.ServicerContext) -> Caller:
    given = {str(key): str(value) for key, value in context.invocation_metadata()}
    namespace = given.get("containerd-namespace", "")
    if not namespace:
        raise InvalidArgument("a call without the namespace of its blobs", code="namespace.missing")
    return Caller(namespace, given.get("containerd-lease", ""))


def _unary(serve: Callable[[Any, grpc.ServicerContext], Any], request: Any, answer: Any) -> Any:
    def call(message: Any, context: grpc.ServicerContext) -> Any:
        try:
            return serve(message, context)
        except NotOurs as error:
            log.debug("left to the next differ: %s", error)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"layerlimit: {error}")
        except Error as error:
            context.abort(*status_of(error))
        except OSError as error:
            context.abort(*status_of(from_os_error(error, "read or write a layer")))

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=answer.SerializeToString
    )
