"""What systemd is told."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import pytest

from layerlimit.daemon.notify import notify, take_notify_socket


@pytest.mark.parametrize("abstract", [False, True])
def test_a_message_arrives(tmp_path: Path, abstract: bool) -> None:
    name = f"@layerlimit-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1) if abstract else name)
        assert notify(name, "READY=1", "STATUS=serving")
        assert listener.recv(1000) == b"READY=1\nSTATUS=serving"


def test_nobody_listens(tmp_path: Path) -> None:
    for address in ("", "relative", str(tmp_path / "none"), "@none-" + secrets.token_hex(8)):
        assert not notify(address, "READY=1")


def test_children_do_not_inherit_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    assert take_notify_socket() == "/run/x"
    assert "NOTIFY_SOCKET" not in os.environ
    assert take_notify_socket() == ""
