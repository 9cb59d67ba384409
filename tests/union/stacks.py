"""Stacks of directories for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from layerlimit.union import Stack, Union


def sha256(number: int) -> str:
    """A layer's name as Docker gives it: 64 hexadecimal digits."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def make(room: Path, count: int, *, name: Callable[[int], str] = str) -> Stack:
    """``count`` lowers, the nearest first, each with a file of its own and one that all of them have."""
    lowers = []
    for number in range(count):
        lower = room / "lower" / name(number)
        lower.mkdir(parents=True)
        (lower / f"own-{number}").write_text(str(number))
        (lower / "same").write_text(str(number))
        lowers.append(lower)
    for kind in ("upper", "work", "target"):
        (room / kind).mkdir()
    return Stack(tuple(lowers), room / "upper", room / "work")


def names(count: int) -> set[str]:
    """What a stack of :func:`make` shows."""
    return {f"own-{number}" for number in range(count)} | ({"same"} if count else set())


@contextmanager
def mounted(union: Union, stack: Stack, target: Path, *, read_only: bool = False) -> Iterator[Path]:
    """``stack`` at ``target`` for a while."""
    union.mount(stack, target, read_only=read_only)
    try:
        yield target
    finally:
        union.unmount(target)
