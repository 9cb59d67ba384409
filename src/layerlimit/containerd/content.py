"""Blobs in the content store of containerd, over its socket: streams, in constant memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty

from layerlimit.containerd.wire import content_pb2 as wire
from layerlimit.containerd.wire import leases_pb2
from layerlimit.errors import Busy, Corrupt, Error, InvalidArgument, NotFound, OutOfSpace

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

UNCOMPRESSED: Final = "containerd.io/uncompressed"
_SERVICE: Final = "containerd.services.content.v1.Content"
_LEASES: Final = "containerd.services.leases.v1.Leases"
_EXPIRE: Final = "containerd.io/gc.expire"
_MESSAGE_BYTES: Final = 16 << 20  # containerd's own bound
_SECONDS: Final = 60.0  # for calls that carry no blob; committing one waits for the disk
_DIGEST: Final = re.compile(r"(sha256|sha384|sha512):[0-9a-f]{64,128}")


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a blob is read or written; ``lease`` keeps a new one from containerd's collector."""

    namespace: str
    lease: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What containerd takes this from in every call."""
        lease = (("containerd-lease", self.lease),) if self.lease else ()
        return (("containerd-namespace", self.namespace), *lease)


#: Is given what ends a blob's transfer, from another thread: whoever waits for it raises. False: end it now.
Until = Callable[[Callable[[], None]], bool]


def _to_its_end(_: Callable[[], None]) -> bool:
    return True


def _cancel(call: Any, until: Until) -> None:
    def end() -> None:
        call.cancel()

    if not until(end):
        end()


class ContentStore:
    """The content store of the containerd that listens at ``address``. Safe for threads.

    It connects at the first call. What containerd refuses raises the typed errors: NotFound for a blob that
    is not there, OutOfSpace, Busy (code ``containerd.silent``) when it does not answer.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._opened: grpc.Channel | None = None

    def close(self) -> None:
        """Close the connection, which ends what is read and written; the next call opens one."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _channel(self) -> grpc.Channel:
        with self._lock:
            if self._opened is None:
                options = (
                    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                    ("grpc.max_reconnect_backoff_ms", 500),  # else up to two minutes after one failure
                    ("grpc.enable_http_proxy", 0),
                )
                self._opened = grpc.insecure_channel(f"unix:{self._address}", options=options)
            return self._opened

    @contextlib.contextmanager
    def read(
        self, caller: Caller, digest: str, size: int = 0, *, until: Until = _to_its_end
    ) -> Iterator[Blob]:
        """The blob ``digest``, to be read once; ``size`` is its length, 0 if it is not known."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidArgument(f"{digest!r:.120} is no digest of a blob", code="blob.digest")
        read = self._channel().unary_stream(
            f"/{_SERVICE}/Read",
            request_serializer=wire.ReadContentRequest.SerializeToString,
            response_deserializer=wire.ReadContentResponse.FromString,
        )
        call = read(wire.ReadContentRequest(digest=digest), metadata=caller.metadata)
        _cancel(call, until)
        try:
            yield Blob(call, digest, size)
        finally:
            call.cancel()

    @contextlib.contextmanager
    def write(self, caller: Caller, ref: str, *, until: Until = _to_its_end) -> Iterator[Upload]:
        """A new blob under the name ``ref`` while it is written; one that is not committed leaves nothing.

        What an upload of that name left is overwritten.
        """
        write = self._channel().stream_stream(
            f"/{_SERVICE}/Write",
            request_serializer=wire.WriteContentRequest.SerializeToString,
            response_deserializer=wire.WriteContentResponse.FromString,
        )
        requests: SimpleQueue[Any] = SimpleQueue()
        call = write(iter(requests.get, None), metadata=caller.metadata)
        _cancel(call, until)
        upload = Upload(requests, call)
        try:
            upload.begin(ref)
            yield upload
        finally:
            upload.end()
            if upload.begun and not upload.committed:
                with contextlib.suppress(Error):  # containerd itself deletes it after a day
                    self._unary("Abort", wire.AbortRequest(ref=ref), Empty, caller)

    def leased(self, caller: Caller) -> Caller:
        """The caller with a lease: his own, or a new one of an hour.

        Containerd does not pass on the lease of a call that came to it over a socket, and deletes a blob that
        nothing refers to when it likes. An hour is for the client to refer to it.
        """
        if caller.lease:
            return caller
        ends = datetime.now(UTC) + timedelta(hours=1)
        request = leases_pb2.CreateRequest(
            id=f"layerlimit-{secrets.token_hex(8)}", labels={_EXPIRE: ends.isoformat(timespec="seconds")}
        )
        self._unary("Create", request, leases_pb2.CreateResponse, caller, service=_LEASES)
        return replace(caller, lease=request.id)

    def info(self, caller: Caller, digest: str) -> wire.Info:
        """What containerd knows of a blob; NotFound."""
        answer = self._unary("Info", wire.InfoRequest(digest=digest), wire.InfoResponse, caller)
        found: wire.Info = answer.info
        return found

    def label(self, caller: Caller, digest: str, labels: Mapping[str, str]) -> None:
        """Set labels of a blob, and keep the others."""
        request = wire.UpdateRequest(info=wire.Info(digest=digest, labels=labels))
        request.update_mask.paths.extend(f"labels.{key}" for key in labels)
        self._unary("Update", request, wire.UpdateResponse, caller)

    def _unary(self, name: str, request: Any, answer: Any, caller: Caller, *, service: str = _SERVICE) -> Any:
        call = self._channel().unary_unary(
            f"/{service}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        with _typed(name):
            return call(request, metadata=caller.metadata, timeout=_SECONDS)


class Blob(io.RawIOBase):
    """A blob being read, by one thread. Its end is reached if it is what its digest says, else Corrupt."""

    def __init__(self, call: Any, digest: str, size: int) -> None:
        super().__init__()
        self._call = call
        self._digest = digest
        self._size = size
        self._hash = hashlib.new(digest.partition(":")[0])
        self._count = 0
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._rest:
            with _typed(f"read {self._digest}"):
                message = next(self._call, None)
            if message is None:
                self._verify()
                return 0
            self._rest = memoryview(message.data)
            self._hash.update(self._rest)
            self._count += len(self._rest)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def drain(self) -> None:
        """Read what is left, so that all of it was verified."""
        rest = memoryview(bytearray(1 << 20))
        while self.readinto(rest):
            pass

    def _verify(self) -> None:
        if not self._digest.endswith(f":{self._hash.hexdigest()}") or self._size not in (0, self._count):
            raise Corrupt(
                f"the blob {self._digest} of {self._size or 'unknown'} bytes came as {self._count} bytes"
                f" with the digest {self._hash.hexdigest()}",
                hint="delete it from containerd's content store and pull the image again",
                code="blob.digest",
            )


class Upload:
    """A blob being written; one call at a time."""

    def __init__(self, requests: SimpleQueue[Any], responses: Any) -> None:
        self._requests = requests
        self._responses = responses
        self._offset = 0
        self.begun = False
        self.committed = False

    def begin(self, ref: str) -> None:
        """Give it its name; Busy when somebody else writes under it."""
        self._exchange(wire.WriteContentRequest(action=wire.STAT, ref=ref))
        self.begun = True

    def write(self, data: memoryview, /) -> None:
        """Append ``data``."""
        # An offset of 0 tells containerd to begin anew: so the first piece drops what an earlier upload left.
        self._exchange(
            wire.WriteContentRequest(action=wire.WRITE, offset=self._offset, data=bytes(data)),
        )
        self._offset += len(data)

    def commit(self, digest: str, labels: Mapping[str, str]) -> bool:
        """Have it under its digest, durably; False when there was such a blob, whose labels stay."""
        try:
            self._exchange(
                wire.WriteContentRequest(
                    action=wire.COMMIT,
                    offset=self._offset,
                    total=self._offset,
                    expected=digest,
                    labels=labels,
                )
            )
        except AlreadyThere:
            return False
        self.committed = True
        return True

    def end(self) -> None:
        """Let go of the name; an upload that was not committed can then be deleted."""
        self._requests.put(None)
        with contextlib.suppress(grpc.RpcError):
            for _ in self._responses:
                pass

    def _exchange(self, request: wire.WriteContentRequest) -> None:
        self._requests.put(request)
        with _typed("write a blob"):
            if next(self._responses, None) is None:
                raise Busy(
                    "containerd ended the upload of a blob", hint="try again", code="containerd.silent"
                )


class AlreadyThere(Error):
    """The content store has that blob."""


@contextlib.contextmanager
def _typed(doing: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        code, text = error.code(), error.details()
        message = f"containerd's content store does not {doing}: {text or code.name}"
        if code is grpc.StatusCode.NOT_FOUND:
            raise NotFound(message, code="blob.not_found") from error
        if code is grpc.StatusCode.ALREADY_EXISTS:
            raise AlreadyThere(message, code="blob.exists") from error
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise OutOfSpace(message, code="blob.no_room") from error
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise Busy(
                message, hint="is containerd running at the address given?", code="containerd.silent"
            ) from error
        raise Error(message, code="containerd.refused") from error
