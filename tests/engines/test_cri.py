"""CRI: a runtime class for each class of layerlimit, and a pod's own limit by annotation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.engines import cri, image, inside
from tests.engines.conftest import Land
from tests.engines.daemons import RELEASES, Containerd, Snapshotter
from tests.engines.inside import MIB
from tests.engines.island import awaited

pytestmark = pytest.mark.lane("engines")

CLASSES = {"limited": 16 * MIB, "roomy": 48 * MIB}


@pytest.fixture(scope="module", params=RELEASES[2:])  # 1.x has CRI's configuration elsewhere
def engine(request: pytest.FixtureRequest, land: Land, archives: dict[str, Path]) -> Iterator[Containerd]:
    with land() as ground:
        names = [f"{name}={limit}" for name, limit in CLASSES.items()]
        address = ground.directory / "ctd.sock"
        layerlimit = Snapshotter(ground, names, ("--containerd", address)).start()
        classes = tuple(CLASSES)
        containerd = Containerd(
            ground, request.param, classes, layerlimit.socket, differ=True, handlers=classes
        )
        containerd.start()
        for archive in archives.values():
            containerd.ctr("images", "import", "--local", archive, namespace="k8s.io")
        yield containerd


@pytest.fixture
def pods(engine: Containerd) -> Iterator[cri.Pods]:
    with cri.pods(engine.address, engine.island.cgroup) as client:
        awaited("CRI to answer", client.ready)
        yield client


def test_the_first_pod_of_a_class_has_its_images_unpacked_by_ours(engine: Containerd, pods: cri.Pods) -> None:
    """The first of the module."""
    unpacked = Snapshotter(engine.island).calls
    assert unpacked("Apply") == 0
    sandbox = pods.run("first", "limited")
    pods.start(sandbox, "first", image.TEST_IMAGE)
    assert unpacked("Apply") == len(image.pause_layers()) + len(image.busybox_layers())
    pods.remove(sandbox)


@pytest.mark.parametrize(
    ("handler", "pod", "container", "limit"),
    [
        ("limited", {}, {}, CLASSES["limited"]),
        ("roomy", {}, {}, CLASSES["roomy"]),
        ("limited", {"layerlimit/size": "24Mi"}, {}, 24 * MIB),
        ("limited", {"layerlimit/size": "24Mi"}, {"layerlimit/size": "32Mi"}, 32 * MIB),
        ("roomy", {"layerlimit/size": "24Mi"}, {}, 24 * MIB),
    ],
    ids=["one class", "another", "pod's annotation", "container's annotation", "lowered"],
)
def test_limit(
    pods: cri.Pods, handler: str, pod: dict[str, str], container: dict[str, str], limit: int
) -> None:
    sandbox = pods.run("pod", handler, pod)
    id = pods.start(sandbox, "pod", image.TEST_IMAGE, container)
    assert inside.is_limit(inside.available(pods.sh(id, inside.FREE)[1]), limit)
    code, said = pods.sh(id, inside.FILL)
    assert code == 0
    assert "No space left on device" in said
    pods.remove(sandbox)


def test_bad_annotation_is_refused(pods: cri.Pods) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pods.run("bad", "limited", {"layerlimit/size": "banana"})
    assert "layerlimit/size" in str(caught.value)
    assert "banana" in str(caught.value)
