"""How the daemon starts, ends and comes back."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.containerd.client import MIB, Daemon, awaited, mount, unmount

pytestmark = pytest.mark.lane("root", "overlay", "loop")


def test_socket_and_health(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
    assert daemon.healthy()
    assert daemon.healthy("containerd.services.snapshots.v1.Snapshots")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_mounts_outlive_it(daemon: Daemon, tmp_path: Path, number: int) -> None:
    at = tmp_path / "at"
    snapshots = daemon.of("small")
    mount(snapshots.prepare("a"), at)
    assert daemon.end(number) == (0 if number == signal.SIGTERM else -number)
    assert daemon.socket.exists() is (number == signal.SIGKILL)
    (at / "data").write_bytes(bytes(8 * MIB))
    with pytest.raises(OSError, match="No space"):
        (at / "more").write_bytes(bytes(12 * MIB))
    daemon.start()
    assert snapshots.mounts("a")
    assert snapshots.usage("a")[0] >= 8 * MIB
    unmount(at)
    snapshots.remove("a")


def test_one_daemon_serves_a_root_and_a_socket(daemon: Daemon, tmp_path: Path) -> None:
    for root in (daemon.root, tmp_path / "other"):
        command = daemon.command()
        command[command.index("--root") + 1] = str(root)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 5
        assert "already" in done.stderr or "another daemon" in done.stderr
        assert "Traceback" not in done.stderr
    assert daemon.healthy()


def test_what_was_removed_is_deleted(daemon: Daemon) -> None:
    snapshots = daemon.of("small")
    snapshots.prepare("a")
    snapshots.remove("a")
    snapshots.prepare("a")  # at once, under the same key
    snapshots.remove("a")
    awaited("the layers to go", lambda: not os.listdir(daemon.root / "layers"))


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        daemon = Daemon(tmp_path)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            daemon.start()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        assert manager.recv(100) == b"READY=1"
        daemon.end()
        assert manager.recv(100) == b"STOPPING=1"
