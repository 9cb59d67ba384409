"""The HTTP end: ``/metrics`` for Prometheus and ``/healthz`` for whoever asks whether we live."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from layerlimit.daemon.config import parse_address
from layerlimit.errors import from_os_error


@contextlib.contextmanager
def serving_metrics(address: str, exposition: Callable[[], bytes], content_type: str) -> Iterator[str]:
    """Serve at ``HOST:PORT`` or ``unix:/PATH`` for the length of the block; the value is the real address.

    An error of :mod:`layerlimit` when it cannot be bound. A Unix socket that a killed daemon left is
    replaced; it is made for its owner and group.
    """

    class Handler(_Handler):
        pages: ClassVar = {
            "/metrics": (content_type, exposition),
            "/healthz": ("text/plain", lambda: b"ok\n"),
        }

    place = parse_address(address)
    try:
        server = _UnixServer(place, Handler) if isinstance(place, Path) else _tcp_server(place, Handler)
    except OSError as error:
        raise from_os_error(
            error, f"serve metrics at {address}", hint="choose another address for the metrics"
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics")
    thread.start()
    try:
        yield address if isinstance(place, Path) else f"{place[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        if isinstance(place, Path):
            place.unlink(missing_ok=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a slow reader must not keep the daemon from ending
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no news."""


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def __init__(self, path: Path, handler: type[BaseHTTPRequestHandler]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            path.unlink()
        super().__init__(str(path), handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        os.chmod(str(self.server_address), 0o660)
        self.server_name, self.server_port = "localhost", 0


class _TcpServer6(_Server):
    address_family = socket.AF_INET6


def _tcp_server(place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> _Server:
    return (_TcpServer6 if ":" in place[0] else _Server)(place, handler)


class _Handler(BaseHTTPRequestHandler):
    pages: ClassVar[dict[str, tuple[str, Callable[[], bytes]]]]
    timeout = 10  # seconds for a client to say what it wants and to read it
    server_version = "layerlimit"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            self._answer(404, "text/plain", b"there are /metrics and /healthz\n")
            return
        content_type, body = page
        try:
            content = body()
        except Exception as error:
            self._answer(500, "text/plain", f"{type(error).__name__}: {error}\n".encode(errors="replace"))
        else:
            self._answer(200, content_type, content)

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Scrapes are not logged."""
