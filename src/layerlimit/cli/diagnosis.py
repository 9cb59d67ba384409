"""What works on this machine, found by trying: each union mounted, each limit written past."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerlimit.driver import Driver
from layerlimit.errors import Error, NotSupported, from_os_error
from layerlimit.limit import MIB, Limit
from layerlimit.union import probe

_ASKED: Final = 16 * MIB
_GROWN: Final = 32 * MIB
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a union works; ``why`` says why not."""

    name: str
    works: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """What happened when a layer limited to ``asked`` bytes was filled, and then grown to twice that.

    ``shown`` is what statvfs gave as available when it was empty, ``written`` how many bytes fitted until the
    kernel answered ``answer``. ``grows_mounted`` and ``grows_unmounted`` say whether it took more afterwards.
    """

    asked: int
    shown: int
    written: int
    answer: str
    grows_mounted: bool
    grows_unmounted: bool
    why_not_mounted: str

    @property
    def holds(self) -> bool:
        """Whether the limit is one: at least what was asked, at most 1 % more, then ENOSPC."""
        return self.asked <= self.written <= self.asked + self.asked // 100 and self.answer == "ENOSPC"


@contextlib.contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A directory on the disk of ``root`` (in it if it exists), which is gone at the end."""
    near = next(path for path in (root, *root.parents) if path.is_dir())
    try:
        made = Path(tempfile.mkdtemp(prefix=".layerlimit-doctor-", dir=near))
    except OSError as error:
        raise from_os_error(error, f"try things out in {near}") from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def try_union(name: str, where: Path) -> Finding:
    """Mount the union in ``where``."""
    try:
        probe(name, where)
    except Error as error:
        return Finding(name, False, str(error))
    return Finding(name, True)


def try_limit(limiter: str, union: str, where: Path) -> Proof:
    """Fill a limited layer in a root of its own below ``where``; the typed error when that is impossible."""
    driver = Driver(where / f"{union}-{limiter}", union=union, limiter=limiter)
    try:
        driver.create("base")
        driver.create("layer", "base", limit=Limit(_ASKED))
        with driver.mounted("layer") as path, open(path / "fill", "wb", buffering=0) as file:
            space = os.statvfs(path)
            written, answer = _fill(file.fileno())
            why = _grow(driver)
            grows_mounted = not why and _fill(file.fileno(), at_most=_BLOCK)[0] > 0
        grows_unmounted = grows_mounted or (not _grow(driver) and _takes_more(driver))
    except OSError as error:
        raise from_os_error(error, f"fill a layer in {where}") from error
    finally:
        for id in ("layer", "base"):
            with contextlib.suppress(Error):
                driver.remove(id)
        with contextlib.suppress(Error):
            driver.cleanup()
    return Proof(
        asked=_ASKED,
        shown=space.f_bavail * space.f_frsize,
        written=written,
        answer=answer,
        grows_mounted=grows_mounted,
        grows_unmounted=grows_unmounted,
        why_not_mounted=why,
    )


def _fill(fd: int, *, at_most: int = 4 * _ASKED) -> tuple[int, str]:
    """Write until the kernel refuses; how many bytes it took, and the name of its answer."""
    written = 0
    size = min(MIB, at_most)
    while written < at_most:
        try:
            written += os.write(fd, b"\xa5" * size)
        except OSError as error:
            if size == _BLOCK:
                return written, errno.errorcode.get(error.errno or 0, str(error.errno))
            size = _BLOCK  # what is left is less than a large piece
    return written, "none"


def _grow(driver: Driver) -> str:
    """Grow the layer; why it cannot be done now."""
    try:
        driver.resize("layer", Limit(_GROWN))
    except NotSupported as error:
        return error.message
    return ""


def _takes_more(driver: Driver) -> bool:
    with driver.mounted("layer") as path, open(path / "fill", "ab", buffering=0) as file:
        return _fill(file.fileno(), at_most=_BLOCK)[0] > 0
