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


PLUGIN = """#!/bin/sh
# What CNI wants to hear of a network that is not there.
echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "here"}],
    "ips": [{"address": "10.9.8.7/24", "interface": 0}]}'
"""


def add_network(cni: Path) -> None:
    """A network for pods that have users of their own: the node's they may not have."""
    cni.mkdir()
    for plugin in (cni / "nothing", cni / "loopback"):
        plugin.write_text(PLUGIN)
        plugin.chmod(0o755)
    (cni / "0.conflist").write_text('{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "nothing"}]}')


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
        add_network(ground.directory / "cni")
        ground.open_to_mapped_users()
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


def test_a_pod_with_users_of_its_own(engine: Containerd) -> None:
    with cri.pods(engine.address, engine.island.cgroup, 100_000) as pods:
        awaited("CRI to answer", pods.ready)
        sandbox = pods.run("users", "limited")
        id = pods.start(sandbox, "users", image.TEST_IMAGE)
        script = f"cat /proc/self/uid_map; stat -c 'owner %u:%g' / /new; {inside.FREE}; {inside.FILL}"
        code, said = pods.sh(id, script)
        pods.remove(sandbox)
    assert code == 0, said
    assert "100000" in said
    assert said.count("owner 0:0\n") == 2
    assert inside.is_limit(inside.available(said), CLASSES["limited"])
    assert "No space left on device" in said
