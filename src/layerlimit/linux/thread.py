"""A thread with a working directory of its own.

The kernel's working directory belongs to the ``fs_struct`` that all threads of a process share, until one of
them takes its own with unshare(CLONE_FS): from then on its chdir(2) is nobody else's (unshare(2)).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from layerlimit.linux.libc import check, libc

_CLONE_FS: Final = 0x200


def call_in_directory(directory: str | bytes | os.PathLike[str], function: Callable[[], None]) -> None:
    """Call ``function`` with the working directory ``directory``, which no other thread sees.

    Returns when it has ended, raising what it raised; an interrupt (Ctrl-C) waits for it too.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            check(libc.unshare(_CLONE_FS), "unshare")
            os.chdir(directory)
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="layerlimit-cwd")
    thread.start()
    try:
        thread.join()
    finally:
        thread.join()
    if raised:
        try:
            raise raised[0]
        finally:
            raised.clear()  # the traceback refers to this frame: no cycle
