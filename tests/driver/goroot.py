"""A root exactly as the Go driver left it, made with the programs that it ran.

base (64 digits)          a base: owners shifted, setuid and capabilities, a hard link
child                     over it: whiteouts, an opaque directory, AUFS's own files
<c>-init, <c>             a container's two layers, <c> with a quota of 64 MiB (1 KiB blocks)
big                       a container with a quota of 600 MiB (4 KiB blocks) and no -init
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHIFT = 100000

BASE = hashlib.sha256(b"base").hexdigest()
CHILD = hashlib.sha256(b"child").hexdigest()
CONTAINER = hashlib.sha256(b"container").hexdigest()
INIT = f"{CONTAINER}-init"
BIG = hashlib.sha256(b"big").hexdigest()
CHAINS = {
    BASE: [],
    CHILD: [BASE],
    INIT: [CHILD, BASE],
    CONTAINER: [INIT, CHILD, BASE],
    BIG: [CHILD, BASE],
}
QUOTAS = {CONTAINER: 64, BIG: 600}
MARKERS = {CHILD: 3, CONTAINER: 2, BIG: 1}
LIMITED = tuple(sorted(QUOTAS))

EPOCH = 1_396_656_000  # April 2014


def run(*command: str | Path) -> None:
    """A program of the machine, as the Go driver ran it."""
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def capability(root: int | None = None) -> bytes:
    """cap_net_raw+ep as ``security.capability``; with ``root`` that of a user namespace."""
    permitted = 1 << 13
    if root is None:
        return struct.pack("<5I", 0x02000001, permitted, 0, 0, 0)
    return struct.pack("<6I", 0x03000001, permitted, 0, 0, 0, root)


def set_capability(path: Path, value: bytes) -> None:
    """Set it where the kernel's ext4 has such attributes at all (CONFIG_EXT4_FS_SECURITY)."""
    try:
        os.setxattr(path, "security.capability", value)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


class _Branch:
    """Writes into one branch as AUFS would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in (".wh..wh.plnk", ".wh..wh.orph"):
            (directory / name).mkdir()
        (directory / ".wh..wh.aufs").touch()

    def file(self, name: str, text: str, *, mode: int = 0o644, owner: int = 0) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.chown(path, SHIFT + owner, SHIFT + owner)
        path.chmod(mode)
        return path

    def whiteout(self, name: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(self.directory / ".wh..wh.aufs", path.with_name(f".wh.{path.name}"))

    def opaque(self, name: str) -> None:
        (self.directory / name).mkdir(parents=True, exist_ok=True)
        os.link(self.directory / ".wh..wh.aufs", self.directory / name / ".wh..wh..opq")

    def finish(self) -> None:
        for where, _, _ in os.walk(self.directory, topdown=False):
            if not Path(where).name.startswith(".wh..wh.") and Path(where).name != "lost+found":
                os.chown(where, SHIFT, SHIFT)
                os.utime(where, (EPOCH, EPOCH))


def make(root: Path) -> Path:
    """Makes the root and returns the fstab that goes with it."""
    for name in ("mnt", "diff", "layers", "containers_quota"):
        (root / name).mkdir(parents=True)
    lines = ["UUID=6a5f / ext4 errors=remount-ro 0 1\n"]
    for id, chain in CHAINS.items():
        for name in ("mnt", "diff"):
            (root / name / id).mkdir(mode=0o755)
            os.chown(root / name / id, SHIFT, SHIFT)
        (root / "layers" / id).write_text("".join(f"{line}\n" for line in chain))
        if id in QUOTAS:
            image = root / "containers_quota" / f"{id}.ext4"
            run("truncate", image, "-s", f"{QUOTAS[id]}M")
            run("mkfs", "-t", "ext4", "-q", image, "-F")
            lines.append(f"{image} {root / 'diff' / id} ext4 loop,rw,usrquota,grpquota 0 0\n")
            with mounted(root, id):
                os.chown(root / "diff" / id, SHIFT, SHIFT)
                _fill(root, id)
        else:
            _fill(root, id)
    fstab = root.parent / "fstab"
    fstab.write_text("".join(lines))
    return fstab


def delete(root: Path) -> None:
    """Deletes a root, with the directories that a driver keeps immutable."""
    subprocess.run(["chattr", "-R", "-f", "-i", root], check=False, capture_output=True)
    run("rm", "-rf", root)


@contextmanager
def mounted(root: Path, id: str) -> Iterator[Path]:
    """The quota image of ``id`` where the Go driver mounted it, by the same program."""
    run("mount", "-o", "loop,rw", root / "containers_quota" / f"{id}.ext4", root / "diff" / id)
    try:
        yield root / "diff" / id
    finally:
        run("umount", root / "diff" / id)


def _fill(root: Path, id: str) -> None:
    branch = _Branch(root / "diff" / id)
    if id == BASE:
        branch.file("bin/su", "su", mode=0o4755)
        branch.file("bin/wall", "wall", mode=0o2755, owner=5)
        ping = branch.file("bin/ping", "ping", mode=0o755)
        set_capability(ping, capability())
        traced = branch.file("bin/traced", "traced", mode=0o755)
        set_capability(traced, capability(SHIFT))
        for name in ("gone", "kept", "changed"):
            branch.file(f"etc/{name}", f"{name} of base")
        branch.file("opaque/old", "old")
        branch.file("opaque/below/old", "old")
        os.link(branch.file("bin/sh", "sh", mode=0o755), root / "diff" / id / "bin/bash")
        os.symlink("sh", root / "diff" / id / "bin/link")
        os.chown(root / "diff" / id / "bin/link", SHIFT + 7, SHIFT + 7, follow_symlinks=False)
        branch.file("home/user", "of a user", owner=1000)
        branch.file("home/far", "beyond the namespace", owner=70000)
        os.mknod(root / "diff" / id / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (root / "diff" / id / "null").chmod(0o666)
        os.chown(root / "diff" / id / "null", SHIFT, SHIFT)
    elif id == CHILD:
        branch.whiteout("etc/gone")
        branch.file("etc/changed", "changed of child")
        branch.whiteout("home/user")
        branch.opaque("opaque")
        branch.file("opaque/new", "new")
    elif id == INIT:
        branch.file("etc/hostname", "container")
        branch.file("dev/console", "")
    elif id == CONTAINER:
        branch.file("upper/file", "a directory that is called upper")
        branch.file("work/file", "and one that is called work")
        branch.whiteout("etc/kept")
        branch.file("bin/sudo", "sudo", mode=0o4755)
        branch.opaque("opaque/deep")
        branch.file("opaque/deep/x", "x")
    elif id == BIG:
        branch.whiteout("bin")
        branch.file("data", "x" * 100_000)
    branch.finish()


def leave_leftovers(root: Path) -> None:
    """What crashes of the Go driver left behind."""
    for name in ("mnt", "diff"):
        (root / name / "dead-removing" / "below").mkdir(parents=True)
        (root / name / "dead-removing" / "below" / "file").write_text("half removed")
    run("truncate", root / "containers_quota" / "orphan.ext4", "-s", "32M")
    run("mkfs", "-t", "ext4", "-q", root / "containers_quota" / "orphan.ext4", "-F")
    (root / "layers" / "ghost").write_text(f"{BASE}\n")


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything in the root: kinds, owners, modes, times, content, attributes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        if path == root / "open":
            continue  # its times say that somebody looked
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in _names(path)}
        found[str(path.relative_to(root))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_rdev,
            status.st_mtime_ns,
            status.st_ctime_ns,
            content,
            tuple(sorted(attributes.items())),
        )
    return found


def _names(path: Path) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)
