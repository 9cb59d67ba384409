"""The directory that a test run works in, and the sweep of what aborted runs left there.

    /var/tmp/layerlimit-tests/       flocked for moments: making a run's directory, looking for dead ones
        <random>/lock                flocked while the run lives; the kernel lets go of it at any end
        <random>/tmp                 TMPDIR of the run
        <random>/pytest              pytest's base directory, above each test's tmp_path
    /sys/fs/cgroup/…/layerlimit-tests-<random>-*     control groups that the run's engines make

Several runs live side by side: nothing here touches a directory whose lock somebody holds.
``python -m tests.scratch`` sweeps once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

BASE = Path("/var/tmp/layerlimit-tests")

_CONTROL_GROUPS = "layerlimit-tests-"
MNT_DETACH = 2
MS_REC, MS_PRIVATE = 0x4000, 0x40000
CLONE_NEWNS = 0x20000
_libc = ctypes.CDLL(None, use_errno=True)


def enter_mount_namespace() -> None:
    """Gives this thread, and what it starts from now on, mounts of its own; does nothing without root."""
    if os.geteuid() != 0 or _libc.unshare(CLONE_NEWNS) != 0:
        return
    if _libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) == 0:
        return
    # In a chroot whose root is no mount point, mounts go on to spread where the one they lie on is shared;
    # the checks and the sweep work all the same.
    if (code := ctypes.get_errno()) != errno.EINVAL:
        raise OSError(code, f"cannot make the mounts private: {os.strerror(code)}")


def mounts_below(directory: Path) -> list[Path]:
    """The mount points at and below ``directory`` in this mount namespace, the last mounted first."""
    prefix = os.fsencode(directory)
    points = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4])
        if point == prefix or point.startswith(prefix + b"/"):
            points.append(Path(os.fsdecode(point)))
    return points[::-1]


def loops_below(directory: Path) -> list[str]:
    """The loop devices (``/dev/loop7``) whose backing file is or was below ``directory``."""
    devices = []
    for name in os.listdir("/sys/block"):  # a machine may have a thousand
        if not name.startswith("loop") or not os.access(f"/sys/block/{name}/loop", os.F_OK):
            continue
        try:
            backing = Path(f"/sys/block/{name}/loop/backing_file").read_bytes()
        except OSError:
            continue  # detached this very moment
        if backing.startswith(os.fsencode(directory) + b"/"):
            devices.append(f"/dev/{name}")
    return devices


def leftovers(directory: Path, *, patience: float = 0.0) -> list[str]:
    """What is mounted or attached below ``directory``, in words.

    Waits ``patience`` seconds for it to go by itself: a loop device with autoclear goes when its last
    opener does, and udev may be that for a moment.
    """
    deadline = time.monotonic() + patience
    while True:
        found = [f"mount {point}" for point in mounts_below(directory)]
        found += [f"loop device {device}" for device in loops_below(directory)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def release(directory: Path) -> None:
    """Unmounts and detaches everything below ``directory``; what is in use goes when its user does."""
    for point in mounts_below(directory):
        if _libc.umount2(os.fsencode(point), 0) != 0:
            _libc.umount2(os.fsencode(point), MNT_DETACH)
    for device in loops_below(directory):
        subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def control_group(directory: Path) -> str:
    """A new name for what engines below ``directory`` make; it goes with the run that the directory is of."""
    # Outside of runs, as with bench, it is the process that counts.
    run = directory.relative_to(BASE).parts[0] if directory.is_relative_to(BASE) else f"pid{os.getpid()}"
    return f"{_CONTROL_GROUPS}{run}-{secrets.token_hex(4)}"


def remove_control_groups(name: str, *, patience: float = 2.0) -> None:
    """Removes the control groups whose name begins so, wherever they are; those with processes stay.

    The kernel lets go of the dead in its own time, for which this waits.
    """
    deadline = time.monotonic() + patience
    while tops := [top for top in _control_groups() if top.name.startswith(name)]:
        for top in tops:
            for path in sorted(top.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _control_groups() -> Iterator[Path]:
    for at, names, _ in os.walk("/sys/fs/cgroup"):  # not a glob, which fails when some vanish under it
        for name in [each for each in names if each.startswith(_CONTROL_GROUPS)]:
            names.remove(name)
            yield Path(at, name)


def _sweep_control_groups() -> None:
    for name in {top.name for top in _control_groups()}:
        owner = re.match(rf"{_CONTROL_GROUPS}pid([0-9]+)-", name)
        if owner and not Path("/proc", owner[1]).exists():
            remove_control_groups(name, patience=0)


def _remove(directory: Path) -> None:
    """Deletes a directory of a run whose lock the caller holds, the lock file last."""
    release(directory)
    remove_control_groups(f"{_CONTROL_GROUPS}{directory.name}-", patience=0)
    if mounts_below(directory):
        return  # deleting now would delete through the mount
    for entry in directory.iterdir():
        if entry.name == "lock":
            continue
        # Not shutil.rmtree, which recurses: tests make trees deeper than Python's stack.
        delete = ["rm", "-rf", "--one-file-system", "--", str(entry)]
        if subprocess.run(delete, check=False, capture_output=True).returncode != 0:
            # A test may have made files immutable.
            subprocess.run(["chattr", "-R", "-f", "-i", "-a", str(entry)], check=False, capture_output=True)
            subprocess.run(delete, check=False, capture_output=True)
    (directory / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the flock of ``path``, a directory or a file that is made; yields False when it is taken."""
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def sweep() -> list[Path]:
    """Clears away the directories of dead runs, with their mounts and loop devices; returns them."""
    swept = []
    _sweep_control_groups()
    BASE.mkdir(mode=0o755, parents=True, exist_ok=True)
    for directory in sorted(BASE.iterdir()):
        # Under the lock of BASE nobody is between making a directory and locking it. The owner or another
        # sweep may delete it under our eyes: then there is nothing to do.
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            with _locked(BASE, wait=True):
                if not directory.is_dir() or not stack.enter_context(_locked(directory / "lock", wait=False)):
                    continue
            _remove(directory)
            swept.append(directory)
    return swept


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A fresh directory for one run; its end deletes it, with all that is mounted or attached below it."""
    BASE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with _locked(BASE, wait=True):
            directory = BASE / secrets.token_hex(4)
            directory.mkdir(mode=0o755)
            stack.enter_context(_locked(directory / "lock", wait=True))
        (directory / "tmp").mkdir(mode=0o1777)
        (directory / "tmp").chmod(0o1777)
        try:
            yield directory
        finally:
            _remove(directory)


if __name__ == "__main__":
    for path in sweep():
        print(f"swept {path}")
