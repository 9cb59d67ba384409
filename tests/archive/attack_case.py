"""What an attack case is, and the checks and preparations that cases are made of.

Paths are those of a :class:`~tests.archive.world.World`; the archive is extracted into ``/layer``. The
numbers are of no meaning but to find a case.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layerlimit.archive import Form, Limits

Check = Callable[[Path, Form], None]


@dataclass(frozen=True)
class Case:
    """One archive and what has to come of it."""

    name: str
    archive: bytes
    #: Makes what the layer holds before.
    before: Callable[[Path], object] = lambda layer: None
    after: Check = lambda layer, form: None
    #: The code of the error that has to come, and what its message has to name.
    error: str = ""
    names: str = ""
    #: Whether a trusting extractor damages the world by it.
    escapes: bool = False
    #: Whether something is left out with a warning.
    warns: bool = False
    limits: Limits | None = None


def deleted(layer: Path, form: Form, name: str) -> None:
    """Assert that ``name`` is gone and that the layer says so in its form."""
    path = layer / name
    mark = path.with_name(f".wh.{path.name}")
    match form:
        case Form.OVERLAY:
            status = path.lstat()
            assert stat.S_ISCHR(status.st_mode)
            assert status.st_rdev == 0
        case Form.AUFS:
            assert not os.path.lexists(path)
            assert mark.stat().st_size == 0
        case Form.FLAT:
            assert not os.path.lexists(path)
            assert not os.path.lexists(mark)


def opaque(layer: Path, form: Form, name: str) -> None:
    """Assert that the directory ``name`` hides what is below it."""
    path = layer / name
    has_mark = os.path.lexists(path / ".wh..wh..opq")
    attributes = {each: os.getxattr(path, each) for each in os.listxattr(path)}
    assert has_mark == (form is Form.AUFS)
    assert attributes == ({"trusted.overlay.opaque": b"y"} if form is Form.OVERLAY else {})


def has_content(name: str, data: bytes) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert (layer / name).read_bytes() == data
        assert stat.S_ISREG((layer / name).lstat().st_mode)

    return check


def same(one: str, other: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        first, second = (layer / one).lstat(), (layer / other).lstat()
        assert stat.S_ISREG(first.st_mode)
        assert (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)

    return check


def differ(one: str, other: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert (layer / one).lstat().st_ino != (layer / other).lstat().st_ino

    return check


def is_link(name: str, target: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert os.readlink(layer / name) == target

    return check


def gone(name: str) -> Check:
    return lambda layer, form: deleted(layer, form, name)


def missing(name: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert not os.path.lexists(layer / name)

    return check


def is_folder(name: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert stat.S_ISDIR((layer / name).lstat().st_mode)

    return check


def is_opaque(name: str) -> Check:
    return lambda layer, form: opaque(layer, form, name)


def every(*checks: Check) -> Check:
    def check(layer: Path, form: Form) -> None:
        for each in checks:
            each(layer, form)

    return check


def with_file(path: str, data: bytes = b"") -> Callable[[Path], object]:
    def before(layer: Path) -> None:
        place = layer / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    return before


def before(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda layer: [step(layer) for step in steps]


def with_link(name: str, target: str) -> Callable[[Path], object]:
    return lambda layer: (layer / name).symlink_to(target)


def with_folder(name: str) -> Callable[[Path], object]:
    return lambda layer: (layer / name).mkdir(parents=True, exist_ok=True)


def with_socket(layer: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(layer)  # names of sockets are short
        try:
            end.bind("victim")
        finally:
            os.chdir(here)
