"""What the machine offers to the tests: found by trying, never by a version number.

A *lane* is a kernel feature, a privilege or a program that some tests need; they say so with
``@pytest.mark.lane("overlay", "loop")``. Every probe stands on its own, without the code under test: a
broken product must not make its tests disappear.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Probe = Callable[[Path], str]

PROMTOOL = Path(__file__).parents[1] / ".cache/promtool"
GUEST = "LAYERLIMIT_GUEST"  # set in the environment of a run inside the virtual machine (tests/vm)

_NR_FSOPEN, _NR_FSCONFIG = 430, 431  # the same on every architecture
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 21, 24
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Lane:
    """A feature; ``missing`` is empty when it is there, otherwise it says why not."""

    name: str
    missing: str


def probe(scratch: Path) -> dict[str, Lane]:
    """Tries every lane in the empty directory ``scratch``, which is left empty."""
    return {name: Lane(name=name, missing=try_it(scratch)) for name, try_it in _PROBES.items()}


def capabilities() -> int:
    """The effective capabilities of this process, as the bit mask of capabilities(7)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path``."""
    named = _output("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path))
    # In a chroot, the mount table may not show the mount that holds everything.
    return (named or _output("stat", "--file-system", "--format=%T", str(path))).strip()


def _output(*command: str) -> str:
    return subprocess.run(command, check=False, text=True, capture_output=True).stdout


def _errno() -> str:
    return os.strerror(ctypes.get_errno())


def _root(_: Path) -> str:
    if os.geteuid() != 0:
        return "not root"
    return "" if capabilities() >> _CAP_SYS_ADMIN & 1 else "no CAP_SYS_ADMIN"


def _resource(_: Path) -> str:
    return "" if capabilities() >> _CAP_SYS_RESOURCE & 1 else "no CAP_SYS_RESOURCE"


@contextmanager
def _directories(scratch: Path, *names: str) -> Iterator[list[Path]]:
    paths = [scratch / name for name in names]
    for path in paths:
        path.mkdir()
    try:
        yield paths
    finally:
        for path in paths:
            shutil.rmtree(path)


def _overlay_by_mount(scratch: Path) -> str:
    with _directories(scratch, "lower", "upper", "work", "merged") as (lower, upper, work, merged):
        options = f"lowerdir={lower},upperdir={upper},workdir={work}".encode()
        if _libc.mount(b"overlay", os.fsencode(merged), b"overlay", ctypes.c_ulong(0), options) != 0:
            return f"mount(2) of an overlay: {_errno()}"
        _libc.umount2(os.fsencode(merged), 0)
        return ""


def _lowerdir_plus(scratch: Path) -> str:
    fd = _libc.syscall(_NR_FSOPEN, b"overlay", 0)
    if fd < 0:
        return f"fsopen of overlay: {_errno()}"
    with _directories(scratch, "upper", "lower") as lowers:
        try:
            for lower in lowers:
                path = os.fsencode(lower)
                if _libc.syscall(_NR_FSCONFIG, fd, _FSCONFIG_SET_STRING, b"lowerdir+", path, 0) != 0:
                    return f"fsconfig lowerdir+: {_errno()}"
            # A kernel that does not know the option collects it and refuses only now.
            if _libc.syscall(_NR_FSCONFIG, fd, _FSCONFIG_CMD_CREATE, None, None, 0) != 0:
                return f"an overlay with lowerdir+: {_errno()}"
            return ""
        finally:
            os.close(fd)


def _loop(scratch: Path) -> str:
    image = scratch / "image"
    try:
        with image.open("wb") as file:
            file.truncate(1 << 20)
        attach = ["losetup", "--find", "--show", str(image)]
        attached = subprocess.run(attach, check=False, text=True, capture_output=True)
        if attached.returncode != 0:
            return attached.stderr.strip()
        subprocess.run(["losetup", "--detach", attached.stdout.strip()], check=True)
        return ""
    finally:
        image.unlink()


def _aufs(_: Path) -> str:
    listed = Path("/proc/filesystems").read_text(encoding="ascii").split()
    return "" if "aufs" in listed else "not in /proc/filesystems"


def _vm(scratch: Path) -> str:
    # Not whether qemu is there: where the machine could run, a missing program is a failure and not a skip.
    if os.environ.get(GUEST):
        return "this is the guest"
    if platform.machine() != "x86_64":
        return f"the guest is an x86_64 machine, this is {platform.machine()}"
    return _root(scratch)


def _program(*command: str, says: str = "") -> Probe:
    def run(_: Path) -> str:
        if shutil.which(command[0]) is None:
            return f"no program {command[0]}"
        done = subprocess.run(command, check=False, text=True, capture_output=True)
        if done.returncode != 0 or says not in done.stdout:
            return f"{' '.join(command)}: exit code {done.returncode}"
        return ""

    return run


def _cc(scratch: Path) -> str:
    """A compiler that finds the header files of this Python."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-xc", "-"]
    try:
        done = subprocess.run(
            command, input="#include <Python.h>\n", check=False, text=True, capture_output=True
        )
    except OSError as error:
        return f"{compiler[0]}: {error.strerror}"
    return done.stderr.strip().partition("\n")[0] if done.returncode else ""


def _go(scratch: Path) -> str:
    # A Go that is too old to fetch the toolchain a module asks for has no GOTOOLCHAIN to print.
    missing = _program("go", "version")(scratch)
    return missing or (
        "" if _output("go", "env", "GOTOOLCHAIN").strip() else "go cannot change its toolchain"
    )


def _engines(scratch: Path) -> str:
    # Not whether the engines are there: where they could run, a missing program is a failure and not a skip.
    for missing in (_root(scratch), _overlay_by_mount(scratch), _loop(scratch)):
        if missing:
            return missing
    if not any(Path("/sys/fs/cgroup").glob("**/cgroup.procs")):
        return "no control groups"
    done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False, capture_output=True)
    return done.stderr.decode().strip()


_PROBES: dict[str, Probe] = {
    "root": _root,
    "resource": _resource,
    "overlay": _overlay_by_mount,
    "mount2": _overlay_by_mount,
    "lowerdir_plus": _lowerdir_plus,
    "loop": _loop,
    "aufs": _aufs,
    "vm": _vm,
    "gnu_tar": _program("tar", "--version", says="GNU tar"),
    "bsdtar": _program("bsdtar", "--version"),
    "umoci": _program("umoci", "--version"),
    "strace": _program("strace", "-o", "/dev/null", "true"),
    "debootstrap": _program("debootstrap", "--version"),
    "cc": _cc,
    "go": _go,
    "engines": _engines,
    "promtool": _program(str(PROMTOOL), "--version"),
    "systemd_analyze": _program("systemd-analyze", "--version"),
}

PROGRAMS = ("mke2fs", "e2fsck", "resize2fs", "debugfs", "mkfs.xfs", "auplink", "qemu-system-x86_64")
