"""Content stores for tests: that of a real containerd, and one in this process that lies and breaks off."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from layerlimit.containerd.content import Caller, ContentStore
from layerlimit.containerd.wire import content_pb2 as wire
from tests.archive.images import sha256
from tests.engines.daemons import Containerd

KEPT = {"containerd.io/gc.root": "1"}  # without it or a lease, containerd deletes a blob when it likes
_STREAMS = "/containerd.services.content.v1.Content/"


def push(content: ContentStore, caller: Caller, blob: bytes) -> str:
    """Stores a blob for good; its digest."""
    with content.write(caller, f"push-{sha256(blob)}") as upload:
        for start in range(0, len(blob), 1 << 20):
            upload.write(memoryview(blob)[start : start + (1 << 20)])
        upload.commit(sha256(blob), KEPT)
    return sha256(blob)


def pull(content: ContentStore, caller: Caller, digest: str) -> bytes:
    """A blob, verified."""
    with content.read(caller, digest) as blob:
        return io.BufferedReader(blob).read()


def uploads(containerd: Containerd) -> list[Path]:
    """What uploads that were not committed have left on containerd's disk."""
    return [*(containerd.island.directory / "containerd").glob("*.content.*/ingest/*")]


class Liar:
    """Answers every Read with ``answer``, and breaks every Write off after ``room`` bytes.

    With ``stalls`` a Read or Write does not end until its client gives up; ``stalled`` counts those.
    """

    def __init__(self, answer: bytes = b"", *, room: int = 0, stalls: bool = False) -> None:
        self.answer = answer
        self.room = room
        self.stalls = stalls
        self.stalled = threading.Semaphore(0)
        self.aborted: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        match details.method.removeprefix(_STREAMS):
            case "Read":
                return grpc.unary_stream_rpc_method_handler(
                    self._read, wire.ReadContentRequest.FromString, wire.ReadContentResponse.SerializeToString
                )
            case "Write":
                return grpc.stream_stream_rpc_method_handler(
                    self._write,
                    wire.WriteContentRequest.FromString,
                    wire.WriteContentResponse.SerializeToString,
                )
            case "Abort":
                return grpc.unary_unary_rpc_method_handler(
                    self._abort, wire.AbortRequest.FromString, Empty.SerializeToString
                )
        return None

    def _read(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for start in range(0, len(self.answer), 1000):
            yield wire.ReadContentResponse(offset=start, data=self.answer[start : start + 1000])
        self._stall(context)

    def _stall(self, context: grpc.ServicerContext) -> None:
        if self.stalls:
            given_up = threading.Event()
            self.stalled.release()
            if context.add_callback(given_up.set):
                given_up.wait()

    def _write(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        self._stall(context)
        for request in requests:
            if request.offset + len(request.data) > self.room:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no space left on device")
            yield wire.WriteContentResponse(action=request.action)

    def _abort(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.aborted.append(request.ref)
        return Empty()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, liar: Liar) -> None:
        self._liar = liar

    def service(self, handler_call_details: Any) -> Any:
        return self._liar.service(handler_call_details)


@contextmanager
def lying(directory: Path, liar: Liar) -> Iterator[ContentStore]:
    """A content store whose server is ``liar``."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, handlers=[_Handlers(liar)])
        server.add_insecure_port(f"unix:{directory}/liar.sock")
        server.start()
        content = ContentStore(f"{directory}/liar.sock")
        try:
            yield content
        finally:
            content.close()
            server.stop(None).wait()
