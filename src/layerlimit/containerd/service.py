"""containerd's snapshots service: messages in, messages out; the work is done in ``snapshots.py``."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty

from layerlimit import errors
from layerlimit.containerd.snapshots import Snapshots
from layerlimit.containerd.wire import mount_pb2
from layerlimit.containerd.wire import snapshots_pb2 as wire
from layerlimit.errors import Error, InvalidArgument
from layerlimit.store import Info
from layerlimit.union import Mount

SERVICE: Final = "containerd.services.snapshots.v1.Snapshots"
_BLOCK: Final = 100  # entries in one message of a list: far below the size that a message may have
_SECOND: Final = 1_000_000_000

# An error's own code says more than its class.
_BY_CODE: Final = {
    "kind.committed": grpc.StatusCode.FAILED_PRECONDITION,
    "kind.not_active": grpc.StatusCode.FAILED_PRECONDITION,
    "kind.not_committed": grpc.StatusCode.FAILED_PRECONDITION,
    "containerd.silent": grpc.StatusCode.UNAVAILABLE,
}
_BY_CLASS: Final = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Busy: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotSupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
}

log = logging.getLogger("layerlimit.containerd")


def status_of(error: Error) -> tuple[grpc.StatusCode, str]:
    """The status and the text that a client gets: the sentence, what to do, and our stable code."""
    code = _BY_CODE.get(error.code) or _BY_CLASS.get(type(error), grpc.StatusCode.UNKNOWN)
    return code, f"layerlimit: {error} [{error.code}]"


class Service:
    """The ten calls, for the classes of one daemon by name."""

    def __init__(self, classes: Mapping[str, Snapshots], left: Callable[[], None]) -> None:
        """``left`` is called after each commit and removal: there is something to detach or delete."""
        self._classes = classes
        self._left = left

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        calls: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: _unary(getattr(self, f"_{name.lower()}"), request, answer)
            for name, request, answer in (
                ("Prepare", wire.PrepareSnapshotRequest, wire.PrepareSnapshotResponse),
                ("View", wire.ViewSnapshotRequest, wire.ViewSnapshotResponse),
                ("Mounts", wire.MountsRequest, wire.MountsResponse),
                ("Commit", wire.CommitSnapshotRequest, Empty),
                ("Remove", wire.RemoveSnapshotRequest, Empty),
                ("Stat", wire.StatSnapshotRequest, wire.StatSnapshotResponse),
                ("Update", wire.UpdateSnapshotRequest, wire.UpdateSnapshotResponse),
                ("Usage", wire.UsageRequest, wire.UsageResponse),
                ("Cleanup", wire.CleanupRequest, Empty),
            )
        }
        calls["List"] = grpc.unary_stream_rpc_method_handler(
            _told_stream(self._list),
            request_deserializer=wire.ListSnapshotsRequest.FromString,
            response_serializer=wire.ListSnapshotsResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, calls)

    def _class(self, request: Any) -> Snapshots:
        found = self._classes.get(request.snapshotter)
        if found is None:
            raise InvalidArgument(
                f"there is no snapshotter {request.snapshotter!r:.120}",
                hint=f"served are: {', '.join(self._classes)}",
                code="snapshotter.unknown",
            )
        return found

    def _prepare(self, request: Any) -> Any:
        mounts = self._class(request).prepare(request.key, request.parent, dict(request.labels))
        return wire.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    def _view(self, request: Any) -> Any:
        mounts = self._class(request).view(request.key, request.parent, dict(request.labels))
        return wire.ViewSnapshotResponse(mounts=map(_mount, mounts))

    def _mounts(self, request: Any) -> Any:
        return wire.MountsResponse(mounts=map(_mount, self._class(request).mounts(request.key)))

    def _commit(self, request: Any) -> Any:
        self._class(request).commit(request.key, request.name, request.parent, dict(request.labels))
        self._left()
        return Empty()

    def _remove(self, request: Any) -> Any:
        self._class(request).remove(request.key)
        self._left()
        return Empty()

    def _stat(self, request: Any) -> Any:
        return wire.StatSnapshotResponse(info=_info(self._class(request).stat(request.key)))

    def _update(self, request: Any) -> Any:
        only = _labels_in(list(request.update_mask.paths))
        info = self._class(request).update(request.info.name, dict(request.info.labels), only)
        return wire.UpdateSnapshotResponse(info=_info(info))

    def _list(self, request: Any) -> Iterator[Any]:
        found = iter(self._class(request).list(*request.filters))
        while block := list(itertools.islice(found, _BLOCK)):
            yield wire.ListSnapshotsResponse(info=map(_info, block))

    def _usage(self, request: Any) -> Any:
        usage = self._class(request).usage(request.key)
        return wire.UsageResponse(size=usage.bytes, inodes=usage.inodes)

    def _cleanup(self, request: Any) -> Any:
        self._class(request).clean_up()
        return Empty()


def _labels_in(paths: list[str]) -> set[str] | None:
    """The labels that a mask names; None: all of them, as without a mask. else InvalidArgument."""
    only = set()
    for path in paths:
        first, dot, key = path.partition(".")
        if first != "labels" or (dot and not key):
            raise InvalidArgument(
                f"{path!r:.120} of a snapshot cannot be changed",
                hint="labels and labels.KEY can",
                code="mask.invalid",
            )
        only.add(key)
    return None if "" in only or not paths else only


def _mount(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


def _info(info: Info) -> wire.Info:
    answer = wire.Info(name=info.name, parent=info.parent, kind=wire.Kind.Name(info.kind), labels=info.labels)
    answer.created_at.seconds, answer.created_at.nanos = divmod(info.created, _SECOND)
    answer.updated_at.seconds, answer.updated_at.nanos = divmod(info.updated, _SECOND)
    return answer


def _unary(serve: Callable[[Any], Any], request: Any, answer: Any) -> grpc.RpcMethodHandler[Any, Any]:
    @functools.wraps(serve)
    def call(message: Any, context: grpc.ServicerContext) -> Any:
        try:
            return serve(message)
        except Exception as error:
            _abort(error, context)

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=answer.SerializeToString
    )


def _told_stream(serve: Callable[[Any], Iterator[Any]]) -> Callable[[Any, grpc.ServicerContext], Any]:
    @functools.wraps(serve)
    def call(message: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from serve(message)
        except Exception as error:
            _abort(error, context)

    return call


def _abort(error: Exception, context: grpc.ServicerContext) -> None:
    """End the call with the error's status; never returns."""
    if isinstance(error, OSError):
        error = errors.from_os_error(error, "do that")
    if isinstance(error, Error):
        context.abort(*status_of(error))
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    context.abort(
        grpc.StatusCode.INTERNAL, f"layerlimit: unexpected {type(error).__name__}: {error} [internal]"
    )
