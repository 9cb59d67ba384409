"""Unmounting with patience: what every union does the same way."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from layerlimit.errors import Busy, from_os_error

TRIES: Final = 5
PAUSE: Final = 0.1  # seconds; a process that has just been killed still holds its files for some milliseconds


def unmount_patiently(
    target: Path, unmount: Callable[[Path], None], *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Unmount ``target`` with ``unmount``, again while the kernel says EBUSY; then raise Busy.

    A target that is not a mount point (EINVAL) or is gone (ENOENT) is unmounted already.
    """
    for left in reversed(range(TRIES)):
        try:
            unmount(target)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise from_os_error(error, f"unmount {target}") from error
            if not left:
                raise Busy(
                    f"{target} is in use",
                    hint="a process has files open in it or works there: fuser -vm names it",
                ) from error
            sleep(PAUSE)
        else:
            return
