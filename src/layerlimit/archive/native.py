"""The native core (``_native.c``), where it was built: the one place that decides.

It is built with the package where there is a C compiler (``hatch_build.py``). Without it the Python code
makes every entry; with it, those that need no decision are made without the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerlimit.archive.contain import Directory

#: A new directory: its path, a descriptor of it, its mode, and its time in seconds.
Made = tuple[bytes, int, int, int]
Extract = Callable[
    [memoryview, int, int, "dict[bytes, Directory]", int, int, int, int, int, bool],
    tuple[int, int, int, bytes | None, Made | None],
]

extract: Extract | None
try:
    from layerlimit.archive._native import extract
except ImportError:
    extract = None
