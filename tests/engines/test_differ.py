"""containerd 2.x told by ``layerlimit setup containerd --differ``: ours unpacks, the rest passes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines import image, inside
from tests.engines.conftest import Land
from tests.engines.daemons import RELEASES, Containerd, Snapshotter, registry, unused_port
from tests.engines.inside import MIB

pytestmark = pytest.mark.lane("engines")

LIMITED = "layerlimit"


@dataclass
class World:
    engine: Containerd
    layerlimit: Snapshotter

    def forget(self, name: str = image.TEST_IMAGE) -> None:
        """Removes an image with its blobs and snapshots."""
        self.engine.ctr("images", "rm", "--sync", name)


@pytest.fixture(scope="module", params=RELEASES[1:])  # 1.6 knows no differ of others
def world(request: pytest.FixtureRequest, land: Land) -> Iterator[World]:
    with land() as ground:
        address = ground.directory / "ctd.sock"
        layerlimit = Snapshotter(ground, (f"{LIMITED}=16MiB",), ("--containerd", address)).start()
        yield World(
            Containerd(ground, request.param, (LIMITED,), layerlimit.socket, differ=True).start(), layerlimit
        )


def load(world: World, archive: Path, snapshotter: str, *options: str) -> None:
    world.engine.ctr("images", "import", *options, "--snapshotter", snapshotter, archive)


def pull(world: World, archive: Path) -> str:
    """Pulls the test image from a registry; its name there."""
    port = unused_port()
    serving = registry(world.engine.island, port)
    name = f"127.0.0.1:{port}/test:1"
    load(world, archive, "overlayfs")
    world.engine.ctr("images", "tag", image.TEST_IMAGE, name)
    world.engine.ctr("images", "push", "--plain-http", name)
    world.forget()
    world.forget(name)
    world.engine.ctr("images", "pull", "--plain-http", "--snapshotter", LIMITED, name)
    serving.end()
    return name


@pytest.mark.parametrize("way", ["client", "transfer", "pull"])
def test_image_is_unpacked_by_ours(world: World, archives: dict[str, Path], way: str) -> None:
    before = world.layerlimit.calls("Apply")
    name = image.TEST_IMAGE
    if way == "pull":
        name = pull(world, archives["test"])
    else:
        load(world, archives["test"], LIMITED, *(["--local"] if way == "client" else []))
    assert world.layerlimit.calls("Apply") == before + len(image.busybox_layers())
    script = f"ls /old /hidden; cat /new; {inside.FREE}; {inside.FILL}"
    done = world.engine.run("c", name, "/bin/sh", "-c", script, snapshotter=LIMITED)
    said = done.stderr + done.stdout
    assert "above" in said
    assert "gone" not in said
    assert "No space left on device" in said
    assert inside.is_limit(inside.available(said), 16 * MIB), said
    world.forget(name)


def test_foreign_snapshots_pass_to_the_next_differ(world: World, archives: dict[str, Path]) -> None:
    before = world.layerlimit.calls("Apply")
    load(world, archives["test"], "overlayfs", "--local")
    done = world.engine.run("c", image.TEST_IMAGE, "/bin/cat", "/new", snapshotter="overlayfs")
    assert done.stdout.split() == ["new"]
    assert world.layerlimit.calls("Apply") == before
    world.forget()
