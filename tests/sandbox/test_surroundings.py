"""What surrounds a command inside: mounts, cgroups, devices, IPC."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layerlimit.linux.mount import MS_SHARED, clone_tree, set_propagation, unmount
from layerlimit.linux.mountinfo import read
from layerlimit.sandbox import run
from tests.sandbox.inside import Inside

pytestmark = pytest.mark.lane("root", "overlay")


def test_the_hosts_mounts_are_the_same_before_during_and_after(inside: Inside, tmp_path: Path) -> None:
    """Even below a shared mount, where what is mounted in a copy shows up in the original."""
    shared = tmp_path / "shared"
    shared.mkdir()
    with clone_tree(inside.root) as copy:
        copy.attach(shared)
    set_propagation(shared, MS_SHARED)
    try:
        before = mounts_below(tmp_path)
        read_end, write_end = os.pipe()
        go_read, go_write = os.pipe()
        thread = threading.Thread(
            target=run,
            args=(shared, ["sh", "-c", "echo; read go"]),
            kwargs={"stdin": go_read, "stdout": write_end},
        )
        thread.start()
        os.read(read_end, 1)
        during = mounts_below(tmp_path)
        os.write(go_write, b"\n")
        thread.join()
        for fd in (read_end, write_end, go_read, go_write):
            os.close(fd)
        assert during == before
        assert mounts_below(tmp_path) == before
    finally:
        unmount(shared)


def mounts_below(directory: Path) -> list[tuple[Path, str]]:
    return [(m.mount_point, m.fstype) for m in read() if m.mount_point.is_relative_to(directory)]


@pytest.mark.guest
def test_only_the_sandboxs_mounts_are_there(inside: Inside) -> None:
    points = [line.split()[4] for line in inside.run("cat", "/proc/self/mountinfo").out.splitlines()]
    assert [point for point in points if not point.startswith(("/proc", "/sys", "/dev", "/etc/"))] == ["/"]


_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")


@pytest.mark.guest
def test_the_cgroup_tree_is_shown_read_only_where_the_host_has_the_unified_one(root: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from layerlimit.sandbox import run; "
        f"sys.exit(run(Path({str(root)!r}), ['sh', '-c', sys.argv[1]]))"
    )
    script = (
        "cat /proc/self/cgroup | grep 0::; cat /sys/fs/cgroup/cgroup.controllers; echo 0 > /sys/fs/cgroup/x"
    )
    unified = '[ -e /sys/fs/cgroup/cgroup.procs ] || mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", unified, "-", sys.executable, "-c", program, script]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.startswith("0::/\n"), done.stderr
    assert done.stdout.count("\n") == 2
    assert "/sys/fs/cgroup/x: Read-only file system" in done.stderr


def test_dev_is_minimal_and_works(inside: Inside) -> None:
    found = inside.python("""
results["names"] = sorted(os.listdir("/dev"))
results["zero"] = open("/dev/zero", "rb").read(3).hex()
results["null"] = open("/dev/null", "rb").read().hex()
results["random"] = len(open("/dev/urandom", "rb").read(9))
attempt("full", lambda: open("/dev/full", "wb", buffering=0).write(b"x"))
master, slave = os.openpty()
results["pty"] = os.ttyname(slave)
attempt("shm", lambda: opened("/dev/shm/x", os.O_CREAT | os.O_RDWR))
results["fd"] = os.readlink("/dev/fd")
""")
    assert found == {
        "names": sorted([*_DEVICES, "fd", "mqueue", "ptmx", "pts", "shm", "stderr", "stdin", "stdout"]),
        "zero": "000000",
        "null": "",
        "random": 9,
        "full": "ENOSPC",
        "pty": "/dev/pts/0",
        "shm": "ok",
        "fd": "/proc/self/fd",
    }


def test_ipc_is_the_sandboxs_own(inside: Inside) -> None:
    made = subprocess.run(["ipcmk", "--shmem", "4096"], check=True, capture_output=True, text=True).stdout
    try:
        assert inside.run("wc", "-l", "/proc/sysvipc/shm").out.split()[0] == "1"  # the heading
        assert len(Path("/proc/sysvipc/shm").read_text().splitlines()) > 1
    finally:
        subprocess.run(["ipcrm", "--shmem-id", made.split()[-1]], check=True)
