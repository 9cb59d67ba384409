"""Trying again while the kernel says EBUSY: a process that has just been killed still has files open."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final

TRIES: Final = 5
PAUSE: Final = 0.1  # seconds


def patiently(call: Callable[[], object], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """``call``, again while it fails with EBUSY, half a second at most; then its OSError, as any other."""
    for _ in range(TRIES - 1):
        try:
            call()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            sleep(PAUSE)
        else:
            return
    call()
