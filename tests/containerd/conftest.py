"""A daemon of the test's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containerd.client import Client, Daemon, clear


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    options = getattr(request, "param", None)
    found = Daemon(tmp_path, *([options] if options else [])).start()
    yield found
    if found.process.poll() is None:
        found.end(signal.SIGKILL)
    clear(found.root)


@pytest.fixture(params=["layerlimit", "small"])
def snapshots(daemon: Daemon, request: pytest.FixtureRequest) -> Client:
    """Without a default limit, and with one."""
    return daemon.of(request.param)
