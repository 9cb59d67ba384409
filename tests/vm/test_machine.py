"""The virtual machine itself: commands, and what a power cut leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.machine import Machine, MachineError, make_disk, require

pytestmark = [pytest.mark.lane("vm"), pytest.mark.timeout(900)]


def test_power_cut_keeps_what_was_synced(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", size=256 << 20)
    with Machine(tmp_path, disks=[disk]) as machine:
        machine.boot()
        assert machine.run("cat", "/proc/1/comm").stdout == b"sh\n"
        assert machine.run("sh", "-c", "echo out; echo err >&2; exit 7", check=False).returncode == 7
        with pytest.raises(MachineError, match="No such file"):
            machine.run("/no/such/program")
        before = machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout

        machine.run("mount", "/dev/vda", "/mnt")
        machine.run("sh", "-c", "echo kept >/mnt/synced && sync && echo lost >/mnt/unsynced && touch /lost")
        assert not Path("/lost").exists()
        machine.kill()

        machine.boot()
        assert machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout != before
        machine.run("mount", "/dev/vda", "/mnt")
        assert machine.run("cat", "/mnt/synced").stdout == b"kept\n"
        assert machine.run("cat", "/mnt/unsynced", check=False).stdout != b"lost\n"
        with pytest.raises(MachineError, match="switched off"):
            machine.run("sh", "-c", "echo now; sleep 60", on_output=lambda _: machine.kill())


def test_missing_program_is_an_error_and_not_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MachineError, match="qemu-system-x86_64"):
        require()
