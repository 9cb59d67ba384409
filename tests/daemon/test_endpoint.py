"""Metrics over HTTP, on TCP and on a Unix socket."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from pathlib import Path

import pytest

from layerlimit.daemon.endpoint import serving_metrics
from layerlimit.errors import Error, PermissionDenied


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def connection(address: str) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return UnixConnection(address.removeprefix("unix:"))
    return http.client.HTTPConnection(address)


def get(address: str, path: str) -> tuple[int, str, bytes]:
    with contextlib.closing(connection(address)) as link:
        link.request("GET", path)
        answer = link.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
def test_the_pages(tmp_path: Path, kind: str) -> None:
    asked = {"tcp": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": f"unix:{tmp_path}/m/metrics.sock"}[kind]
    if kind == "tcp6" and not _has_ipv6():
        asked = "127.0.0.1:0"
    with serving_metrics(asked, lambda: b"a 1\n", "text/x") as address:
        if kind == "tcp6":
            address = address.replace("::1:", "[::1]:")
        assert get(address, "/metrics") == (200, "text/x", b"a 1\n")
        assert get(address, "/metrics?name[]=a")[0] == 200
        assert get(address, "/healthz") == (200, "text/plain", b"ok\n")
        assert get(address, "/../etc/passwd")[0] == 404
    with pytest.raises(OSError):
        get(address, "/healthz")
    assert not (tmp_path / "m/metrics.sock").exists()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_failed_page_is_an_answer_and_the_next_one_works() -> None:
    answers: list[bytes | Exception] = [ValueError("boom"), b"a 1\n"]

    def exposition() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with serving_metrics("127.0.0.1:0", exposition, "text/x") as address:
        assert get(address, "/metrics")[::2] == (500, b"ValueError: boom\n")
        assert get(address, "/metrics")[0] == 200


def test_a_silent_client_keeps_nobody_waiting() -> None:
    with serving_metrics("127.0.0.1:0", lambda: b"", "text/x") as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))):
            assert get(address, "/healthz")[0] == 200
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_a_socket_that_a_killed_daemon_left_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving_metrics(f"unix:{path}", lambda: b"", "text/x") as address:
        assert get(address, "/healthz")[0] == 200
        assert path.stat().st_mode & 0o777 == 0o660
    path.write_text("mine\n")
    with pytest.raises(Error), serving_metrics(f"unix:{path}", lambda: b"", "text/x"):
        pass
    assert path.read_text() == "mine\n"


def test_a_port_that_is_taken_is_said() -> None:
    with serving_metrics("127.0.0.1:0", lambda: b"", "text/x") as address:
        with pytest.raises(Error, match=address) as refused, serving_metrics(address, lambda: b"", "text/x"):
            pass
    assert not isinstance(refused.value, PermissionDenied)
    assert "another address" in refused.value.hint
