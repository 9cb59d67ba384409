"""The socket that containerd calls: one gRPC server with the snapshots service and gRPC's health check."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from layerlimit.containerd.service import SERVICE
from layerlimit.containerd.wire import health_pb2
from layerlimit.containerd.workers import Workers
from layerlimit.errors import Busy, InvalidArgument, from_os_error

_THREADS: Final = 2
_MOST_THREADS: Final = 32  # while calls wait for something
_MESSAGE_BYTES: Final = 16 << 20  # containerd's own bound
_GRACE_SECONDS: Final = 5.0
_PATH_BYTES: Final = 107  # sun_path, without its end
_HEALTH: Final = "grpc.health.v1.Health"


@contextlib.contextmanager
def serving(
    address: Path,
    handlers: Sequence[grpc.GenericRpcHandler],
    interceptors: Sequence[grpc.ServerInterceptor] = (),
) -> Iterator[None]:
    """Serve at the Unix socket ``address`` for the length of the block; calls that run then may end.

    A socket that a killed daemon left is replaced; Busy when somebody listens there. It is made for its owner
    and group.
    """
    _make_way(address)
    # gRPC's threads and a fork of this process do not go together; it only ever starts programs.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    with Workers(_THREADS, _MOST_THREADS) as threads:
        server = grpc.server(
            threads,  # type: ignore[arg-type]  # it asks for no more than an executor
            handlers=[*handlers, _health()],
            interceptors=list(interceptors),
            options=(
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ),
        )
        before = os.umask(0o117)
        try:
            server.add_insecure_port(f"unix:{address}")
        except RuntimeError as error:
            raise InvalidArgument(
                f"cannot listen at {address}: {error}", hint="give another --address", code="address.invalid"
            ) from error
        finally:
            os.umask(before)
        server.start()
        try:
            yield
        finally:
            server.stop(_GRACE_SECONDS).wait()
            address.unlink(missing_ok=True)


def _make_way(address: Path) -> None:
    if len(os.fsencode(address)) > _PATH_BYTES:
        raise InvalidArgument(
            f"the address {address} is longer than {_PATH_BYTES} bytes, which no socket can have",
            hint="give a shorter --address",
            code="address.invalid",
        )
    try:
        address.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(address):
            return
        if not address.is_socket():
            raise InvalidArgument(
                f"{address} is there and no socket", hint="give another --address", code="address.invalid"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.settimeout(5)
            with contextlib.suppress(ConnectionRefusedError):
                probe.connect(str(address))
                raise Busy(
                    f"somebody serves at {address} already",
                    hint="end that daemon, or give another --address",
                    code="address.busy",
                )
        address.unlink()
    except OSError as error:
        raise from_os_error(error, f"listen at {address}") from error


def _health() -> grpc.GenericRpcHandler:
    def check(request: Any, context: grpc.ServicerContext) -> Any:
        if request.service not in ("", SERVICE):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    method = grpc.unary_unary_rpc_method_handler(
        check,
        request_deserializer=health_pb2.HealthCheckRequest.FromString,
        response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(_HEALTH, {"Check": method})
