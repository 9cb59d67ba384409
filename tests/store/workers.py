"""Talking to worker processes from a test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.store.worker import MESSAGE

MODULE = "tests.store.worker"


class Died(Exception):
    """The worker killed itself in the middle of the request, as it was told."""


class Workers:
    """The server that forks workers, so that a new one costs no start of an interpreter."""

    def __init__(self) -> None:
        self._control, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=server.fileno(),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def start(self, root: Path, limiter: str) -> Worker:
        """A new process with the store open."""
        ours, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with workers:
            request = json.dumps({"root": str(root), "limiter": limiter}).encode()
            socket.send_fds(self._control, [request], [workers.fileno()])
        return Worker(self, ours, json.loads(self._control.recv(MESSAGE)))

    def wait(self, pid: int) -> int:
        """The exit code of a worker, once it has ended."""
        self._control.send(json.dumps({"wait": pid}).encode())
        return int(json.loads(self._control.recv(MESSAGE)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        self._process.wait(timeout=60)


class Worker:
    """One process with a store open; ``opened``: what the store said of its opening."""

    def __init__(self, workers: Workers, channel: socket.socket, pid: int) -> None:
        self._workers = workers
        self._channel = channel
        self._pid = pid
        self._code: int | None = None
        line = channel.recv(MESSAGE)
        assert line, f"the worker ended with {self.close()} before its store was open"
        self.opened: list[str] = json.loads(line)

    def ask(self, request: dict[str, Any], *, die: int = -1) -> dict[str, Any]:
        """Send a request; Died when the process has killed itself, at the step ``die``."""
        self.send(request, die=die)
        line = self._channel.recv(MESSAGE)
        if not line:
            code = self.close()
            assert (code, die >= 0) == (-signal.SIGKILL, True), f"{request} ended the worker with {code}"
            raise Died
        answer: dict[str, Any] = json.loads(line)
        return answer

    def send(self, request: dict[str, Any], *, die: int = -1) -> None:
        """Begin a request, whose answer :meth:`receive` waits for."""
        self._channel.send(json.dumps(request | {"die": die}).encode())

    def receive(self) -> dict[str, Any]:
        """The answer to what was sent."""
        line = self._channel.recv(MESSAGE)
        assert line, f"the worker ended with {self.close()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> int:
        """Let the process end; its exit code, once it has: only then are its locks free."""
        self._channel.close()
        if self._code is None:
            self._code = self._workers.wait(self._pid)
        return self._code
