"""A gRPC interceptor that times, counts and logs every call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from layerlimit.daemon.logs import fields

# What an engine asks for to see whether it is there; no trouble of anybody's.
_USUAL: Final = ("NOT_FOUND", "ALREADY_EXISTS", "CANCELLED", "UNIMPLEMENTED")
_OURS: Final = ("INTERNAL", "UNKNOWN", "DATA_LOSS")
_READS: Final = ("Stat", "List", "Usage", "Mounts", "Check", "Watch")

Answered = Callable[[str, str, float], None]

log = logging.getLogger("layerlimit.rpc")


class Watch(grpc.ServerInterceptor):
    """Tells ``answered(rpc, code, seconds)`` of each call to a method that is served, and logs it.

    Changes are logged as info, reads and what engines ask for to find out as debug, refusals as warning,
    failures of ours as error. A stream is answered when it has ended, or its client has gone.
    """

    def __init__(self, answered: Answered | None = None) -> None:
        self._answered = answered
        self._watched: dict[str, Any] = {}  # by the method's whole name

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wrap the handler of a method; one that is not served has none, and gets no series.

        It is asked for with every call; a method has the same handler for as long as it is served.
        """
        watched = self._watched.get(details.method)
        if watched is None:
            watched = self._watch(details.method.rpartition("/")[2], continuation(details))
            if watched is not None:
                self._watched[details.method] = watched
        return watched

    def _watch(self, rpc: str, handler: Any) -> Any:
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(rpc, handler.unary_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(rpc, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, rpc: str, serve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            start = time.perf_counter()
            failed = True
            try:
                answer = serve(request, context)
                failed = False
                return answer
            finally:
                self._tell(rpc, request, context, failed, time.perf_counter() - start)

        return call

    def _stream(self, rpc: str, serve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Iterator[Any]]:
        def call(request: Any, context: Any) -> Iterator[Any]:
            start = time.perf_counter()
            failed = True
            try:
                yield from serve(request, context)
                failed = False
            except GeneratorExit:
                context.set_code(grpc.StatusCode.CANCELLED)
                raise
            finally:
                self._tell(rpc, request, context, failed, time.perf_counter() - start)

        return call

    def _tell(self, rpc: str, request: Any, context: Any, failed: bool, seconds: float) -> None:
        given = context.code()
        code = given.name if given is not None else "UNKNOWN" if failed else "OK"
        if self._answered is not None:
            self._answered(rpc, code, seconds)
        level = _level(rpc, code)
        if log.isEnabledFor(level):
            said = context.details()
            reason = said.decode(errors="replace") if isinstance(said, bytes) else said or ""
            log.log(
                level,
                reason if code != "OK" and reason else "answered",
                extra=fields(
                    rpc=rpc,
                    key=_key(request),
                    snapshotter=getattr(request, "snapshotter", None) or None,
                    code=code,
                    ms=round(1000 * seconds, 3),
                ),
            )


def _level(rpc: str, code: str) -> int:
    if code in _OURS:
        return logging.ERROR
    if code == "OK":
        return logging.DEBUG if rpc in _READS else logging.INFO
    return logging.DEBUG if code in _USUAL else logging.WARNING


def _key(request: Any) -> str | None:
    """The layer that a request of the snapshots service is about."""
    info = getattr(request, "info", None)
    for holder, name in ((request, "key"), (request, "name"), (info, "name")):
        value = getattr(holder, name, None)
        if isinstance(value, str) and value:
            return value
    return None
