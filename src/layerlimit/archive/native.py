"""The native core (``_native.c``), where it was built: the one place that decides.

It is built with the package where there is a C compiler (``hatch_build.py``). Without it the Python code
makes every entry; with it, those that need no decision are made without the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from layerlimit.archive.contain import Directory


class Core(NamedTuple):
    """The functions of the native core, whose docstrings say what they do."""

    extract: Callable[
        [
            memoryview,
            int,
            int,
            dict[bytes, Directory],
            Callable[[bytes, int, bool], object],
            int,
            int,
            int,
            int,
            int,
            int,
            bool,
        ],
        tuple[int, int, int, bytes | None, bytes],
    ]
    set_times: Callable[[int, bytes, int], int]


core: Core | None
try:
    from layerlimit.archive import _native
except ImportError:
    core = None
else:
    core = Core(_native.extract, _native.set_times)
