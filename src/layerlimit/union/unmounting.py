"""Unmounting with patience: what every union does the same way."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

from layerlimit.errors import Busy, from_os_error
from layerlimit.linux.patience import patiently


def unmount_patiently(
    target: Path,
    unmount: Callable[[Path], None],
    mounted: Callable[[Path], bool],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Unmount ``target`` with ``unmount``, again while the kernel says EBUSY; then raise Busy.

    A target where nothing is ``mounted`` (any more) is success.
    """
    try:
        patiently(lambda: unmount(target), sleep=sleep)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(
                f"{target} is in use",
                hint="a process has files open in it or works there: fuser -vm names it",
            ) from error
        # EINVAL: not a mount point, but also one that a user namespace inherited and may not undo.
        if error.errno in (errno.EINVAL, errno.ENOENT) and not mounted(target):
            return
        raise from_os_error(error, f"unmount {target}") from error
