"""Roots to run in: the host's own, below a writable layer, so that every program of the host is inside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit.linux.mount import FsContext, mount, unmount
from tests.sandbox.inside import Inside


@contextlib.contextmanager
def overlay_of_host(upper: Path, work: Path, target: Path) -> Iterator[Path]:
    """The host's root below ``upper``. The unmount at the end is a plain one: nothing may hold the root."""
    mount("overlay", target, "overlay", data=f"lowerdir=/,upperdir={upper},workdir={work}")
    try:
        yield target
    finally:
        unmount(target)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root with the host's programs and a writable layer in memory: overlay takes none inside its lower."""
    memory, target = tmp_path / "memory", tmp_path / "root"
    memory.mkdir()
    target.mkdir()
    with FsContext("tmpfs") as context:
        context.set_string("size", "64m")
        context.create()
        with context.mount() as made:
            made.attach(memory)
    try:
        # A /proc of the layer's own, so that overlay lets a test rename it.
        for name in ("work", "upper", "upper/proc"):
            (memory / name).mkdir()
        os.setxattr(memory / "upper/proc", "trusted.overlay.opaque", b"y")
        with overlay_of_host(memory / "upper", memory / "work", target):
            yield target
    finally:
        unmount(memory)


@pytest.fixture
def inside(root: Path) -> Inside:
    return Inside(root, python_of(root))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An empty directory as a root: for what fails before the command."""
    made = tmp_path / "bare"
    for name in ("proc", "sys", "dev", "etc"):
        (made / name).mkdir(parents=True)
    return made


def python_of(root: Path) -> str:
    """An interpreter that the root has: this one, unless it lies on another mount than ``/``."""
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if (root / candidate.lstrip("/")).exists():
            works = subprocess.run(["chroot", root, candidate, "-I", "-S", "-c", ""], check=False)
            if works.returncode == 0:
                return candidate
    raise AssertionError("no Python on the file system of /")
