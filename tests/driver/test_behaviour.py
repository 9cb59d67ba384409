"""The public behaviour suite over every union × limiter, and over the face of the Go package."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerlimit import aufslimit
from layerlimit.driver import Driver
from layerlimit.limit import MIB, Limit
from layerlimit.testing import Drivers, Factory, Graph, Later, Seed
from layerlimit.union import Aufs, Overlay, Union

pytestmark = pytest.mark.guest

LIMIT = Limit(24 * MIB)


def _drivers(name: str, union: Union, *lanes: str) -> list[object]:
    """One run without a limiter, one with plain and one with limited parents."""
    plain = Drivers(lambda root: Driver(root, union, "none"), union.name, limits=False)
    children = Drivers(lambda root: Driver(root, union, "image"), union.name, limit=LIMIT)
    runs = {"none": plain, "image": children, "image-all": replace(children, base_limit=LIMIT)}
    marks = [pytest.mark.lane("root", "loop", *lanes)]
    return [pytest.param(run, id=f"{name}-{key}", marks=marks) for key, run in runs.items()]


class _Face(Drivers):
    """``aufslimit`` as Docker would use it: quotas in MiB, image layers without one."""

    def create(self, driver: Driver, id: str, parent: str = "") -> None:
        driver.create_with_quota(id, parent, 24 if parent else 0)


def _face(union: str, *lanes: str) -> list[object]:
    run = _Face(lambda root: aufslimit.init(root, union=union), "aufslimit")
    return [pytest.param(run, id=f"face-{union}", marks=[pytest.mark.lane("root", "loop", *lanes)])]


@pytest.fixture(
    params=[
        *_drivers("overlay-new", Overlay(api="new"), "overlay", "lowerdir_plus"),
        *_drivers("overlay-mount2", Overlay(api="mount2"), "overlay", "mount2"),
        *_drivers("aufs", Aufs(), "aufs"),
        *_face("overlay", "overlay"),
        *_face("aufs", "aufs"),
    ]
)
def factory(request: pytest.FixtureRequest) -> Factory:
    made: Factory = request.param
    return made


class TestSeed(Seed):
    pass


class TestLater(Later):
    pass


class TestGraph(Graph):
    pass


def test_the_suite_is_whole() -> None:
    """A test that is renamed away would not be missed otherwise."""
    counts = {suite: sum(name.startswith("test_") for name in dir(suite)) for suite in (Seed, Later, Graph)}
    assert counts[Seed] == 23
    assert counts[Later] >= 20
    assert counts[Graph] >= 9
