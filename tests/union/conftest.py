"""Every union this machine may have, and ground it can stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit.errors import NotSupported
from layerlimit.linux.mount import FsContext, unmount
from layerlimit.union import Aufs, Overlay, Union


@pytest.fixture(
    params=[
        pytest.param(Overlay(api="new"), id="overlay-new", marks=pytest.mark.lane("root", "lowerdir_plus")),
        # The guest's kernel has nothing but mount(2).
        pytest.param(
            Overlay(api="mount2"),
            id="overlay-mount2",
            marks=[pytest.mark.lane("root", "mount2"), pytest.mark.guest],
        ),
        pytest.param(Aufs(), id="aufs", marks=pytest.mark.lane("root", "aufs")),
    ]
)
def union(request: pytest.FixtureRequest) -> Union:
    made: Union = request.param
    return made


@pytest.fixture
def ground(union: Union, tmp_path: Path) -> Iterator[Path]:
    """A directory whose file system can hold uppers: a tmpfs where the test directory's own cannot."""
    made = tmp_path / "ground"
    made.mkdir()
    try:
        union.check_backing(made)
    except NotSupported:
        with FsContext("tmpfs") as context:
            context.create()
            with context.mount() as mounted:
                mounted.attach(made)
        yield made
        unmount(made)
    else:
        yield made
