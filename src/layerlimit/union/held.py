"""Directories held open while a mount call names them by number."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path


def hold(path: Path, held: ExitStack) -> int:
    """An O_PATH descriptor of the directory ``path``, closed with ``held``."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    held.callback(os.close, fd)
    return fd
