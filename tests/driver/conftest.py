"""Drivers over every union of this machine, and ground that they can stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit.driver import Driver
from layerlimit.errors import NotSupported
from layerlimit.linux.mount import FsContext, unmount
from layerlimit.union import Aufs, Overlay, Union

pytest.register_assert_rewrite("layerlimit.testing")


def _marked(union: Union, id: str, *lanes: str) -> object:
    return pytest.param(union, id=id, marks=pytest.mark.lane("root", "loop", *lanes))


UNIONS = [
    _marked(Overlay(api="new"), "overlay-new", "overlay", "lowerdir_plus"),
    _marked(Overlay(api="mount2"), "overlay-mount2", "overlay", "mount2"),
    _marked(Aufs(), "aufs", "aufs"),
]


@pytest.fixture(params=UNIONS)
def union(request: pytest.FixtureRequest) -> Union:
    made: Union = request.param
    return made


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """A directory whose file system can hold every union's uppers: a tmpfs where the disk cannot."""
    made = tmp_path / "ground"
    made.mkdir()
    try:
        Aufs().check_backing(made)
        Overlay().check_backing(made)
    except NotSupported:
        with FsContext("tmpfs") as context:
            context.create()
            with context.mount() as mounted:
                mounted.attach(made)
        yield made
        unmount(made)
    else:
        yield made


@pytest.fixture
def root(ground: Path) -> Path:
    """Where a driver's root goes; not there yet."""
    return ground / "root"


@pytest.fixture
def driver(root: Path) -> Iterator[Driver]:
    """A driver on overlay; cleaned up afterwards."""
    made = Driver(root, "overlay")
    yield made
    made.cleanup()
