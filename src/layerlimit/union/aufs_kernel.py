"""What the AUFS union asks of the kernel and of aufs-tools, as one small protocol.

No kernel that distributions ship has AUFS, so tests put a recorder here and hold the exact call sequence.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol

from layerlimit.linux import mount as linux_mount
from layerlimit.linux.statfs import Statfs, statfs
from layerlimit.linux.statx import is_mount_point
from layerlimit.linux.userns import in_initial_user_namespace

_AUPLINK: Final = (Path("/sbin/auplink"), Path("/usr/sbin/auplink"), Path("/usr/bin/auplink"))
_AUPLINK_SECONDS: Final = 60
_LOCK: Final = "/run/layerlimit-xino.lock"  # only root can make it, and so hold it

_log = logging.getLogger(__name__)
_threads = threading.Lock()


class Kernel(Protocol):
    """The border. Everything raises OSError, except ``alone``, which is an aid and never fails."""

    @property
    def data_max(self) -> int:
        """The most bytes of mount data that one mount(2) reads."""

    def mount(self, target: Path, *, flags: int, data: str) -> None:
        """mount(2) of type ``aufs``."""

    def unmount(self, target: Path) -> None:
        """umount2(2), not lazily."""

    def statfs(self, path: Path) -> Statfs:
        """statfs(2)."""

    def is_mount_point(self, path: Path) -> bool:
        """By statx(2)."""

    def in_initial_user_namespace(self) -> bool:
        """AUFS mounts nowhere else."""

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other threads and processes from mounting meanwhile: the xino file has one name for all."""

    def auplink(self) -> Path | None:
        """Where aufs-tools' auplink is, if it is installed."""

    def run(self, *command: str) -> int:
        """The exit status of a program."""


class LinuxKernel:
    """The real one."""

    @property
    def data_max(self) -> int:
        return linux_mount.MOUNT_DATA_MAX

    def mount(self, target: Path, *, flags: int, data: str) -> None:
        linux_mount.mount("none", target, "aufs", flags=flags, data=os.fsencode(data))

    def unmount(self, target: Path) -> None:
        linux_mount.unmount(target)

    def statfs(self, path: Path) -> Statfs:
        return statfs(path)

    def is_mount_point(self, path: Path) -> bool:
        return is_mount_point(path)

    def in_initial_user_namespace(self) -> bool:
        return in_initial_user_namespace()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with _threads:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = os.open(_LOCK, flags, 0o600)
            except OSError:  # no /run, or it is read-only: a lost race is retried
                yield
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def auplink(self) -> Path | None:
        return next((path for path in _AUPLINK if path.is_file()), None)

    def run(self, *command: str) -> int:
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=_AUPLINK_SECONDS
            )
        except subprocess.TimeoutExpired:
            _log.warning("%s did not end within %d seconds", " ".join(command), _AUPLINK_SECONDS)
            return 124  # as timeout(1) says it
        if done.returncode:
            _log.debug("%s: %s", " ".join(command), done.stderr.strip())
        return done.returncode
