"""The table of mechanisms, and how one is proven to work here: by using it."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from layerlimit.errors import Error, InvalidArgument, NotSupported
from layerlimit.union.aufs import Aufs
from layerlimit.union.overlay import Overlay
from layerlimit.union.protocol import Stack, Union

# In the order in which "auto" tries them.
MECHANISMS: Final[dict[str, Callable[[], Union]]] = {
    "overlay": Overlay,
    "aufs": Aufs,
}


def make(name: str) -> Union:
    """The union called ``name``, without asking whether it works here; InvalidArgument for unknown names."""
    try:
        return MECHANISMS[name]()
    except KeyError:
        known = ", ".join(MECHANISMS)
        raise InvalidArgument(f"no union is called {name!r}", hint=f"choose one of {known}") from None


def probe(name: str, scratch: Path) -> None:
    """Prove that the union ``name`` works below the directory ``scratch``, or raise NotSupported saying why.

    A stack of two directories is mounted; a file is read, changed and removed in it. Nothing is left behind.
    """
    union = make(name)
    with ExitStack() as undo:
        try:
            directory = Path(tempfile.mkdtemp(prefix="probe-", dir=scratch))
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            union.check_backing(directory)
            _try(union, directory, undo)
        except NotSupported:
            raise
        except (Error, OSError) as error:
            raise NotSupported(f"{name} does not work in {scratch}: {error}", code="union.probe") from error


def _try(union: Union, directory: Path, undo: ExitStack) -> None:
    lower, upper, work, target = (directory / name for name in ("lower", "upper", "work", "target"))
    for path in (lower, upper, work, target):
        path.mkdir()
    for name in ("kept", "changed", "removed"):
        (lower / name).write_text("lower")
    union.mount(Stack((lower,), upper, work if union.needs_work else None), target)
    undo.callback(union.unmount, target)
    if not union.is_mounted(target):
        raise OSError(errno.EIO, "the mount is not there", str(target))
    (target / "changed").write_text("upper")
    (target / "removed").unlink()
    seen = {path.name: path.read_text() for path in target.iterdir()}
    below = {path.name: path.read_text() for path in lower.iterdir()}
    if seen != {"kept": "lower", "changed": "upper"} or set(below.values()) != {"lower"}:
        raise OSError(errno.EIO, f"the union shows {seen} over {below}", str(target))
