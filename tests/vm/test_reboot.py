"""A node stops with limited layers mounted, and each later boot mounts them again, with their limits.

Together with what only a booted node shows: the unit of packaging/ under systemd, beside a real containerd.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.image import TEST_IMAGE
from tests.engines.inside import FILL, FREE, MIB, available, filled
from tests.vm import guest
from tests.vm.machine import Machine, MachineError, make_disk
from tests.vm.node import PLAIN, ROOT, SMALL, Node
from tests.vm.reboots import GROWN, LIMITS

pytestmark = [pytest.mark.lane("vm"), pytest.mark.timeout(1800)]

LIMIT = 16 * MIB
WRITER = "trap exit TERM; echo own >/own; while :; do echo x >>/written; sleep 0.1; done"

SNAPSHOTS = f"""
ctr images import --snapshotter {SMALL} /run/share/node/test.tar
ctr run --detach --null-io --snapshotter {SMALL} {TEST_IMAGE} limited /bin/sh -c '{WRITER}'
ctr snapshots --snapshotter {PLAIN} prepare making
ctr snapshots --snapshotter {PLAIN} prepare open
"""
STATUS = "systemctl status --no-pager --full layerlimit containerd docker || true"
LIST = f"for name in {PLAIN} {SMALL}; do ctr snapshots --snapshotter $name ls; done"


def cut(machine: Machine) -> None:
    """While a command runs. What unsynced writes become in a store is tests/vm/test_power_cut.py's."""
    machine.run("sh", "-c", "sync; echo lost >/mnt/unsynced; touch /lost")
    with pytest.raises(MachineError, match="switched off"):
        machine.run("sh", "-c", "echo now; sleep 60", on_output=lambda _: machine.kill())


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param([cut], id="cut"),
        pytest.param([Machine.shutdown, cut], id="shutdown", marks=pytest.mark.long),
    ],
)
def test_mounts_come_back_with_their_limits(tmp_path: Path, ends: list[Callable[[Machine], None]]) -> None:
    disk = make_disk(tmp_path / "disk", size=2 << 30)
    with Machine(tmp_path, disks=[disk], systemd=True) as machine:
        node = boot(machine)
        commands_tell_how_they_ended(machine)
        listed = make_snapshots(node)
        unit_disturbs_nothing(node)
        store_is_mounted_again(machine)
        for end in ends:
            end(machine)
            node = boot(machine)
            assert machine.run("cat", "/mnt/unsynced", check=False).stdout != b"lost\n"
            assert not Path("/lost").exists()
            assert node.sh(LIST) == listed
            snapshots_are_mounted_again(node)
            store_is_mounted_again(machine)
        everything_can_be_removed(node)


def boot(machine: Machine) -> Node:
    """Engines start when the socket answers; nothing is mounted yet."""
    machine.boot()
    machine.run("mount", "/dev/vda", "/mnt")
    node = Node(machine)
    node.install()
    node.sh("systemctl start multi-user.target")
    assert node.active("layerlimit", "containerd", "docker"), node.sh(STATUS)
    assert node.mounted() == []
    return node


def store_is_mounted_again(machine: Machine) -> None:
    """By the library alone, in a store of its own; and `check` is clean in both."""
    done = guest.run(machine, sys.executable, "-m", "tests.vm.reboots", "/mnt/store", ROOT, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert (report["mounted"], report["holds"]) == ([], dict.fromkeys(LIMITS, 0))
    for name, layer in report["layers"].items():
        limit = GROWN if name == "grown" else LIMITS[name]
        # What a file of its own costs below, what ext4 keeps back until the next mount above.
        assert limit - MIB <= layer["fitted"] <= limit * 1.03
        assert (layer["limit"], layer["own"], layer["parent"]) == (limit, name, "kept")
        assert layer["holds"] == (name != "engines")
    assert (report["mounted after umount"], report["check"]) == (False, [])


def commands_tell_how_they_ended(machine: Machine) -> None:
    done = machine.run("sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    with pytest.raises(MachineError, match="No such file"):
        machine.run("/no/such/program")


def make_snapshots(node: Node) -> str:
    """A running limited container, an unlimited snapshot that is written to, a committed one; their list."""
    node.sh(SNAPSHOTS)
    for key in ("making", "open"):
        node.mount(PLAIN, key, f"/tmp/{key}")
        node.sh(f"echo {key} >/tmp/{key}/own")
    node.sh(f"umount /tmp/making; ctr snapshots --snapshotter {PLAIN} commit made making")
    return node.sh(LIST)


def unit_disturbs_nothing(node: Node) -> None:
    """The daemon is killed, restarted and stopped while a container writes: mounts, writer and limit stay."""
    mounted = mounts_of_container(node)
    directory = node.sh("stat -c %i-%a /run/layerlimit")
    assert directory.endswith("-750\n")

    node.sh("kill -KILL $(systemctl show -P MainPID layerlimit)")
    node.sh("until [ $(systemctl show -P NRestarts layerlimit) = 1 ]; do sleep 0.5; done")
    # The start is under way; this waits for its end without asking again and again.
    node.sh("systemctl start layerlimit; systemctl restart docker")
    assert node.sh("systemctl show -P NRestarts layerlimit") == "1\n"
    assert node.sh("cat /proc/$(systemctl show -P MainPID layerlimit)/oom_score_adj") == "-999\n"
    length = int(node.inside("limited", "stat -c %s /written"))
    node.sh("systemctl restart layerlimit")
    assert node.active("layerlimit", "containerd", "docker"), node.sh(STATUS)
    assert mounts_of_container(node) == mounted
    node.sh(f"ctr snapshots --snapshotter {SMALL} info limited")
    node.sh("systemctl stop layerlimit")
    assert mounts_of_container(node) == mounted
    # Containers that have the socket's directory mounted go on with the same one.
    assert node.sh("stat -c %i-%a /run/layerlimit") == directory
    limit_holds(node)
    assert int(node.inside("limited", "stat -c %s /written")) > length
    logged = node.sh("journalctl --sync; journalctl -o cat _SYSTEMD_UNIT=layerlimit.service")
    messages = [json.loads(line)["message"] for line in logged.splitlines()]
    assert messages[-1] == "ending"
    assert len([message for message in messages if message.startswith("serving")]) == 3


def mounts_of_container(node: Node) -> list[str]:
    """Its root and those of its layer, the image among them, as process 1 sees them."""
    lines = node.sh("cat /proc/1/mountinfo").splitlines()
    (root,) = [line for line in lines if line.split()[4].endswith("/limited/rootfs")]
    (layer,) = re.findall(rf"upperdir={ROOT}/img/(\w+)/", root)
    assert f"{ROOT}/img/{layer}" in node.mounted()
    return [line for line in lines if line == root or f"/{layer} " in line]


def snapshots_are_mounted_again(node: Node) -> None:
    node.sh("ctr tasks start --detach --null-io limited")
    limit_holds(node)
    node.mount(PLAIN, "open", "/tmp/open")
    # More than any limit here.
    node.sh("grep open /tmp/open/own; dd if=/dev/zero of=/tmp/open/more bs=1M count=32")
    node.sh(f"ctr snapshots --snapshotter {PLAIN} view seen made")
    node.mount(PLAIN, "seen", "/tmp/seen")
    node.sh("grep making /tmp/seen/own; if touch /tmp/seen/own; then exit 1; fi; umount /tmp/seen")
    node.sh(f"ctr snapshots --snapshotter {PLAIN} rm seen")


def limit_holds(node: Node) -> None:
    """In the running container, for df and for what writes."""
    said = node.inside("limited", f"cat /own; {FREE}; {FILL}; rm /filled")
    assert said.startswith("own\n"), said
    assert LIMIT - MIB <= available(said) <= LIMIT * 1.02, said
    assert "No space left on device" in said
    assert LIMIT - MIB <= filled(said) <= LIMIT * 1.02, said


def everything_can_be_removed(node: Node) -> None:
    node.sh(f"""
        ctr tasks kill --signal KILL limited
        ctr tasks delete --force limited
        ctr containers delete limited
        umount /tmp/open
        ctr snapshots --snapshotter {PLAIN} rm open
        ctr snapshots --snapshotter {PLAIN} rm made
        ctr images rm --sync {TEST_IMAGE}
        until [ -z "$(ls {ROOT}/layers)" ]; do sleep 0.2; done
    """)
    assert node.mounted() == []
    assert node.attached() == []
