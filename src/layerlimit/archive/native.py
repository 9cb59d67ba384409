"""The native core (``_native.c``), where it was built: the one place that decides.

It is built with the package where there is a C compiler (``hatch_build.py``). Without it the Python code
makes every entry; with it, those that need no decision are made without the interpreter.
"""

from __future__ import annotations

from types import ModuleType

core: ModuleType | None
try:
    from layerlimit.archive import _native as core
except ImportError:
    core = None
