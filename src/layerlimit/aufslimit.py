"""The face of Tutum's Go package ``aufslimit``, name for name.

    driver = aufslimit.init("/var/lib/docker/aufslimit")
    driver.create_with_quota("web", "base", 512)          # MiB
    path = driver.get("web")

``init`` wants AUFS, as the Go package did; ``init(root, union="overlay")`` is the same face on today's
kernels. What is different from the Go driver is written down in docs/aufslimit.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from layerlimit.errors import InvalidArgument, LinuxOnly, NotFound

__all__ = ["MS_REMOUNT", "Driver", "init", "unmount"]

MS_REMOUNT = 32  # from the kernel's uapi/linux/mount.h

if sys.platform == "linux":
    from layerlimit.driver import Driver as _Driver
    from layerlimit.linux.statx import is_mount_point
    from layerlimit.union import make
else:
    _Driver = LinuxOnly


class Driver(_Driver):
    """A driver that calls itself ``aufslimit``, and for which removing what is not there is success."""

    def __str__(self) -> str:
        return "aufslimit"

    def remove(self, id: str, *, force: bool = True) -> None:
        try:
            super().remove(id, force=force)
        except NotFound:
            return


def init(root: str | os.PathLike[str], *, union: str = "aufs", owner: tuple[int, int] = (0, 0)) -> Driver:
    """Open or make the root directory of a driver; NotSupported when the kernel has no such union.

    The module can be imported on every system; where it is not Linux, this raises NotSupported.
    """
    return Driver(root, union=union, owner=owner)


def unmount(target: str | os.PathLike[str]) -> None:
    """Unmount ``target``, flushing AUFS pseudo links first; Busy when the kernel keeps saying so.

    InvalidArgument when nothing is mounted there.
    """
    if sys.platform != "linux":
        LinuxOnly()
    path = Path(target).absolute()
    if not is_mount_point(path):
        raise InvalidArgument(f"nothing is mounted at {path}", code="unmount.not_mounted")
    make("aufs").unmount(path)
