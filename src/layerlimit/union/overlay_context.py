"""overlay by the new mount API: one ``lowerdir+`` per layer (Linux 6.8 and later).

Documentation/filesystems/overlayfs.rst, "Multiple lower layers"; the kernel says what it does not like in the
context's log, so errors of this path have its own words.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from layerlimit.linux.mount import FSCONFIG_STRING_MAX, MOUNT_ATTR_RDONLY, FsContext
from layerlimit.union.held import hold
from layerlimit.union.protocol import Stack

_MISSING = "/proc/self/no-such-layer"


@cache
def available() -> bool:
    """Whether this kernel takes ``lowerdir+``: asked of it, without mounting anything. ENODEV: no overlay."""
    with FsContext("overlay") as context:
        try:
            context.set_flag("layerlimit-probe")
        except OSError:
            pass  # a file system that reads its options one by one refuses what it does not know …
        else:
            return False  # … before 6.5, overlay collects them unread for mount(2)'s parser
        for layer in ("/", _MISSING):  # the second, should / be of a kind that overlay does not join
            try:
                context.set_string("lowerdir+", layer)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return True
            else:
                return True
    return False  # EINVAL twice: Unknown parameter 'lowerdir+' (6.5, 6.6)


def mount(stack: Stack, target: Path, options: Mapping[str, str | None], *, read_only: bool) -> None:
    """Mount ``stack`` at ``target`` in one step; raises OSError and leaves nothing on failure."""
    with FsContext("overlay") as context, ExitStack() as held:
        context.set_string("source", "overlay")
        for lower in stack.lowers:
            context.set_string("lowerdir+", _name(lower, held))
        if stack.upper is not None and stack.work is not None:
            # Unlike lowerdir+, these two are still unescaped by the kernel.
            context.set_string("upperdir", _name(stack.upper, held, literal=False))
            context.set_string("workdir", _name(stack.work, held, literal=False))
        for key, value in options.items():
            if value is None:
                context.set_flag(key)
            else:
                context.set_string(key, value)
        if read_only:
            context.set_flag("ro")
        context.create()
        with context.mount(attributes=MOUNT_ATTR_RDONLY if read_only else 0) as mounted:
            mounted.attach(target)


def _name(path: Path, held: ExitStack, *, literal: bool = True) -> str:
    """``path`` as fsconfig takes it: itself, or through a descriptor where it is too long or not literal."""
    if len(os.fsencode(path)) <= FSCONFIG_STRING_MAX and (literal or "\\" not in os.fspath(path)):
        return os.fspath(path)
    return f"/proc/self/fd/{hold(path, held)}"
