"""overlay by mount(2), for kernels without ``lowerdir+`` (5.14 to 6.7): all options in one page.

The kernel cuts what is longer, silently, and a cut that falls between two layers would mount without the
rest: what does not fit is refused here. To make 500 layers fit they are named relative to the working
directory of a thread: by their names below their common parent, or, where those are too long or hold
characters that mean something in options, as the numbers of open descriptors below /proc/thread-self/fd.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerlimit.errors import InvalidArgument
from layerlimit.linux.mount import MOUNT_DATA_MAX, MS_RDONLY
from layerlimit.linux.mount import mount as sys_mount
from layerlimit.linux.thread import call_in_directory
from layerlimit.union.held import hold
from layerlimit.union.protocol import Stack

# Escapes exist for these, but which ones work where differs between kernels; descriptors need none.
_SPECIAL: Final = frozenset("\\:,")
_DESCRIPTORS: Final = Path("/proc/thread-self/fd")


@dataclass(frozen=True, slots=True)
class Plan:
    """Options for mount(2) and the working directory in which its relative names are right."""

    directory: Path
    data: str


def mount(stack: Stack, target: Path, options: Mapping[str, str | None], *, read_only: bool) -> None:
    """Mount ``stack`` at ``target``; raises OSError, or InvalidArgument for what does not fit a page."""
    target = Path(os.path.abspath(target))
    with ExitStack() as held:
        made = plan(stack, options, held)
        flags = MS_RDONLY if read_only else 0
        call_in_directory(
            made.directory,
            lambda: sys_mount("overlay", target, "overlay", flags=flags, data=os.fsencode(made.data)),
        )


def plan(
    stack: Stack, options: Mapping[str, str | None], held: ExitStack, *, room: int = MOUNT_DATA_MAX
) -> Plan:
    """How to say ``stack`` in ``room`` bytes; the descriptors that it names live as long as ``held``."""
    made = _by_name(stack, options)
    if made is None or _size(made) > room:
        made = _by_number(stack, options, held)
    if _size(made) > room:
        raise InvalidArgument(
            f"the options of {len(stack.lowers)} layers take {_size(made)} bytes; mount(2) takes {room}",
            hint="use fewer layers, or a kernel from 6.8 on",
            code="overlay.page",
        )
    return made


def _by_name(stack: Stack, options: Mapping[str, str | None]) -> Plan | None:
    parent = Path(os.path.commonpath([lower.parent for lower in stack.lowers]))
    lowers = [os.fspath(lower.relative_to(parent)) for lower in stack.lowers]
    branches = {key: os.fspath(path) for key, path in _writable(stack).items()}
    if any(_SPECIAL.intersection(name) for name in (*lowers, *branches.values())):
        return None
    return Plan(parent, _data(lowers, branches, options))


def _by_number(stack: Stack, options: Mapping[str, str | None], held: ExitStack) -> Plan:
    lowers = [str(hold(lower, held)) for lower in stack.lowers]
    branches = {key: str(hold(path, held)) for key, path in _writable(stack).items()}
    return Plan(_DESCRIPTORS, _data(lowers, branches, options))


def _writable(stack: Stack) -> dict[str, Path]:
    if stack.upper is None or stack.work is None:
        return {}
    return {"upperdir": stack.upper, "workdir": stack.work}


def _data(lowers: list[str], branches: Mapping[str, str], options: Mapping[str, str | None]) -> str:
    pairs = {"lowerdir": ":".join(lowers), **branches, **options}
    return ",".join(key if value is None else f"{key}={value}" for key, value in pairs.items())


def _size(made: Plan) -> int:
    return len(os.fsencode(made.data))
