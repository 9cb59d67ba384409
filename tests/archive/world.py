"""A small world with a layer's directory in it, for extractors that may break out.

    <world>/etc/passwd, /tmp/keep, /dir/keep, …     the canaries: nothing here may change
    <world>/layer/                                   where archives are extracted

Work runs in a process of its own, whose root directory the world is and whose mounts are private: what an
absolute link or a pile of ``..`` reaches is the world's ``/etc``, never the machine's.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18

CANARIES = {
    "etc/passwd": b"root:x:0:0\n",
    "etc/emptied": b"notempty",
    "etc/somefile": b"some\n",
    "etc/localpasswd": b"local\n",
    "tmp/keep": b"keep\n",
    "var/run/x": b"old\n",
    "dir/keep": b"keep\n",
}


class World:
    """The directory tree of a world, and how to run something in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layer = path / "layer"
        for name, content in CANARIES.items():
            place = path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        self.layer.mkdir(mode=0o755)
        (path / "proc").mkdir()
        self._before = self.outside()

    def outside(self) -> dict[bytes, tuple[object, ...]]:
        """All that is not the layer: kind, mode, owner, links, times of data and of the inode, content."""
        found: dict[bytes, tuple[object, ...]] = {}
        pending = [os.fsencode(self.path)]
        while pending:
            place = pending.pop()
            status = os.lstat(place)
            content: object = b""
            if place == os.fsencode(self.layer):
                continue
            if stat.S_ISDIR(status.st_mode):
                content = sorted(os.listdir(place))
                pending.extend(os.path.join(place, name) for name in os.listdir(place))
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(place)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(place)
            found[place] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_mtime_ns,
                status.st_ctime_ns,
                os.listxattr(place, follow_symlinks=False),
                content,
            )
        return found

    @property
    def intact(self) -> bool:
        return self.outside() == self._before

    def run(self, work: Callable[[], Any], *, mount: str = "", proc: bool = True) -> Any:
        """What ``work`` returns, called in a process whose root is the world.

        ``mount`` are the options of a tmpfs to lie on the layer meanwhile; without ``proc`` there is no
        ``/proc``, for work that might delete what it finds. An exception of ``work`` that is
        not caught there fails the caller.
        """
        reading, writing = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reading)
                self._enter(mount, proc=proc)
                result = pickle.dumps(work())
                while result:
                    result = result[os.write(writing, result) :]
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        assert status == 0, "the process in the world failed"
        return pickle.loads(answer)

    def _enter(self, mount: str, *, proc: bool) -> None:
        _check(_libc.unshare(_CLONE_NEWNS))
        _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
        if proc:
            target = os.fsencode(self.path / "proc")
            _check(_libc.mount(b"/proc", target, None, ctypes.c_ulong(_MS_BIND | _MS_REC), None))
        if mount:
            layer = os.fsencode(self.layer)
            _check(_libc.mount(b"tmpfs", layer, b"tmpfs", ctypes.c_ulong(0), mount.encode()))
        os.chroot(self.path)
        os.chdir("/")


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
