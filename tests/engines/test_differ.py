"""containerd 2.x with our differ: what ``ctr`` unpacks goes through it, the rest passes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import image, inside
from tests.engines.conftest import Land
from tests.engines.daemons import CURRENT, Containerd, Snapshotter
from tests.engines.inside import MIB

pytestmark = pytest.mark.lane("engines")

OURS = "layerlimit-diff"
LIMITED = "layerlimit"


def engines(land: Land, differs: tuple[str, ...]) -> Iterator[Containerd]:
    with land() as ground:
        address = ground.directory / "ctd.sock"
        layerlimit = Snapshotter(ground, (f"{LIMITED}=16MiB",), ("--containerd", address)).start()
        yield Containerd(ground, CURRENT, (LIMITED,), layerlimit.socket, differs).start()


@pytest.fixture
def ours_alone(land: Land) -> Iterator[Containerd]:
    yield from engines(land, (OURS,))


@pytest.fixture
def ours_first(land: Land) -> Iterator[Containerd]:
    yield from engines(land, (OURS, "walking"))


def load(engine: Containerd, archive: Path, snapshotter: str) -> str:
    """Imports in the client: the transfer service would use the differ of its ``unpack_config``."""
    line = ("images", "import", "--local", "--snapshotter", snapshotter, archive)
    return engine.ctr(*line).stderr


def test_image_is_unpacked_by_ours(ours_alone: Containerd, archives: dict[str, Path]) -> None:
    # No other differ is configured, so nobody else can have done it.
    load(ours_alone, archives["test"], LIMITED)
    script = f"ls /old /hidden; cat /new; {inside.FREE}; {inside.FILL}"
    done = ours_alone.run("c", image.TEST_IMAGE, "/bin/sh", "-c", script, snapshotter=LIMITED)
    said = done.stderr + done.stdout
    assert "above" in said
    assert "No space left on device" in said
    assert inside.is_limit(inside.available(said), 16 * MIB), said


def test_foreign_snapshots_pass_to_the_next_differ(ours_first: Containerd, archives: dict[str, Path]) -> None:
    load(ours_first, archives["test"], "overlayfs")
    done = ours_first.run("c", image.TEST_IMAGE, "/bin/cat", "/new", snapshotter="overlayfs")
    assert done.stdout.split() == ["new"]
