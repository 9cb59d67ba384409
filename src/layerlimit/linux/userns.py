"""User namespaces: whether this process is in one (user_namespaces(7))."""

from __future__ import annotations

import os
from typing import Final

_INITIAL_INO: Final = 0xEFFFFFFD  # PROC_USER_INIT_INO in include/linux/proc_ns.h


def in_initial_user_namespace() -> bool:
    """Whether root here is root of the machine: what mount(2) of most file systems wants."""
    return os.stat("/proc/self/ns/user").st_ino == _INITIAL_INO
