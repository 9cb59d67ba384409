"""The file systems of the sandbox: the root, its own /proc, /sys and /dev, and nothing of the host.

The order is what makes it safe. Two runs may share a root, and a command in the other one may exchange
/proc for a link or rename it while this one is being set up (CVE-2019-19921). So everything is assembled,
masked and made read-only on a private tmpfs that nobody else can reach, and only whole trees are moved into
the root, onto descriptors that were opened without following links. What happens to the root's names
afterwards cannot uncover anything.

The masks are Docker's (moby oci/defaults.go).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

from layerlimit.linux.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    DetachedMount,
    FsContext,
    bind,
    clone_tree,
    set_attributes,
    set_propagation,
)
from layerlimit.linux.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    enter_root,
    move_mount,
    unshare,
)
from layerlimit.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV, openat2
from layerlimit.sandbox._spec import Spec, doing

_PLAIN: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC

_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
# The first five are Docker's; root inside could write to the others without any capability.
_READ_ONLY: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/driver",
    "/proc/dynamic_debug",
    "/proc/mtrr",
    "/proc/pressure",
)
_DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_TTY_GROUP: Final = 5  # `tty` in every distribution
_SHARED_MEMORY: Final = "64m"  # Docker's default
_HOST_FILES: Final = ("etc/resolv.conf", "etc/hosts")  # the network is the host's, so are its names


class Sources(NamedTuple):
    """Detached mounts of what the host gives: taken before its mounts are left behind."""

    root: DetachedMount
    files: dict[str, DetachedMount]
    terminal: DetachedMount | None
    cgroups: bool


def take(spec: Spec) -> Sources:
    """Clone what is needed from the host's mounts; nothing is attached, so a failure leaves nothing."""
    with doing(f"use the root {os.fsdecode(spec.root)}"):
        root = clone_tree(spec.root)
        attributes = MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if spec.read_only else 0)
        # Private, since a clone is a peer of its shared original: mounts on it would show on the host.
        set_attributes(root.fd, set_=attributes, propagation=MS_PRIVATE)
        if not stat.S_ISDIR(os.stat(root.fd).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), spec.root)
    files = {}
    for name in _HOST_FILES:
        path = os.path.realpath("/" + name)
        if os.path.isfile(path):
            with doing(f"clone the host's {path}"):
                files[name] = _clone_read_only(path)
    terminal = None
    if spec.terminal:
        with doing(f"clone the terminal {os.fsdecode(spec.terminal)}"):
            terminal = clone_tree(spec.terminal)
            set_attributes(terminal.fd, set_=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, propagation=MS_PRIVATE)
    return Sources(root, files, terminal, os.path.exists("/sys/fs/cgroup/cgroup.controllers"))


def _clone_read_only(path: str) -> DetachedMount:
    mount = clone_tree(path)
    set_attributes(mount.fd, set_=_PLAIN | MOUNT_ATTR_RDONLY, propagation=MS_PRIVATE)
    return mount


def enter(sources: Sources) -> None:
    """Leave the host's mount, IPC, UTS and cgroup namespaces; ``/`` is the assembled root afterwards.

    To be called by PID 1 of a new PID namespace: /proc shows the one of who mounts it. The umask must be 0.
    """
    with doing("make the mount, IPC, UTS and cgroup namespaces"):
        unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    with doing("leave the host's mounts"):
        set_propagation("/", MS_PRIVATE, recursive=True)
        # At once: the copies of the host's mounts keep other layers' file systems alive while they exist.
        with _filesystem("tmpfs", _PLAIN, mode="700") as stage:
            _attach(stage, "/")
            enter_root(stage.fd)
    for name in ("root", "proc", "sys", "dev"):
        os.mkdir("/" + name, 0o755)
    _attach(sources.root, "/root")
    _make_dev(sources.terminal)
    _make_sys(sources.cgroups)
    _make_proc()
    for name, mount in sources.files.items():
        _cover_file(sources.root.fd, name, mount)
    for name in ("proc", "sys", "dev"):
        _move_into(sources.root.fd, name)
    with doing("enter the root"):
        enter_root(sources.root.fd)


def _make_dev(terminal: DetachedMount | None) -> None:
    with doing("make /dev"):
        # Alone in allowing devices; too small to keep files in, since they would count against no limit.
        _mount("tmpfs", "/dev", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, mode="755", size="64k")
        for name, (major, minor) in _DEVICES.items():
            os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        for name, target in _LINKS.items():
            os.symlink(target, f"/dev/{name}")
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(f"/dev/{name}", 0o755)
        _mount(
            "devpts",
            "/dev/pts",
            MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
            mode="620",
            ptmxmode="666",
            gid=str(_TTY_GROUP),
        )
        _mount("tmpfs", "/dev/shm", _PLAIN, mode="1777", size=_SHARED_MEMORY)
        _mount("mqueue", "/dev/mqueue", _PLAIN)
        if terminal is not None:
            # ttyname(3) looks for the terminal in /dev, and the host's /dev/pts is not there.
            os.close(os.open("/dev/console", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            _attach(terminal, "/dev/console")


def _make_sys(cgroups: bool) -> None:
    with doing("make /sys"):
        _mount("sysfs", "/sys", _PLAIN | MOUNT_ATTR_RDONLY)
        if cgroups:  # programs look there for their memory and CPU limits
            _mount("cgroup2", "/sys/fs/cgroup", _PLAIN | MOUNT_ATTR_RDONLY)
        _restrict("/sys/")


def _make_proc() -> None:
    with doing("make /proc"):
        _mount("proc", "/proc", _PLAIN)
        _restrict("/proc/")


def _restrict(below: str) -> None:
    for path in _READ_ONLY:
        if path.startswith(below) and os.path.exists(path):
            bind(path, path, read_only=True)
    for path in _MASKED:
        if not path.startswith(below) or not os.path.exists(path):
            continue
        if os.path.isdir(path):
            _mount("tmpfs", path, _PLAIN | MOUNT_ATTR_RDONLY, mode="755")
        else:
            bind("/dev/null", path)


def _cover_file(root: int, name: str, mount: DetachedMount) -> None:
    """Show the host's file where the root has one; a root without it gets none: no layer is written to."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
    with doing(f"mount the host's /{name} in the root"):
        try:
            target = openat2(root, name.encode(), os.O_PATH, resolve=resolve)
        except (FileNotFoundError, NotADirectoryError):
            return  # not there, or a link to what is not there
        try:
            if stat.S_ISREG(os.stat(target).st_mode):
                move_mount(mount.fd, target)
        finally:
            os.close(target)


def _move_into(root: int, name: str) -> None:
    with doing(f"mount /{name} in the root", hint=f"the root needs a directory /{name}"):
        try:
            os.mkdir(name, 0o755, dir_fd=root)
        except FileExistsError:
            pass
        source = os.open("/" + name, os.O_PATH | os.O_CLOEXEC)
        try:
            target = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                move_mount(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)


def _filesystem(fstype: str, attributes: int, **options: str) -> DetachedMount:
    with FsContext(fstype) as context:
        context.set_string("source", fstype)
        for key, value in options.items():
            context.set_string(key, value)
        context.create()
        return context.mount(attributes=attributes)


def _mount(fstype: str, target: str, attributes: int, **options: str) -> None:
    with _filesystem(fstype, attributes, **options) as mount:
        _attach(mount, target)


def _attach(mount: DetachedMount, target: str) -> None:
    """Attach to a name that only this process can change."""
    fd = os.open(target, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        move_mount(mount.fd, fd)
    finally:
        os.close(fd)
