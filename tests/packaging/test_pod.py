"""The pod of the DaemonSet, run by containerd's CRI as kubelet would ask for it, beside pods of its classes.

What kubelet would do with the manifests is done here: their volumes, rights, arguments and configuration. As
their image takes minutes to build, `make test` mounts the machine's own programs into a small one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engines import cri, image, inside
from tests.engines.daemons import CURRENT, Containerd
from tests.engines.island import Island, awaited, island
from tests.packaging import containerfile

pytestmark = pytest.mark.lane("engines")

CHECKOUT = Path(__file__).parents[2]
MANIFESTS = CHECKOUT / "packaging" / "kubernetes"
ROOT = "/var/lib/layerlimit"
PROGRAMS = ("/usr", "/usr/bin:/bin", "/usr/sbin:/sbin", "/usr/lib:/lib", "/usr/lib64:/lib64")
_HOST = 2  # NamespaceMode NODE
_PROPAGATION = {"None": 0, "HostToContainer": 1, "Bidirectional": 2}

# The directories of a node that the pod mounts, here the island's; shared, as systemd makes every mount.
NODE = f"""
mkdir -p /run/layerlimit /run/containerd {{directory}}/root
mount -t tmpfs tmpfs /var/lib
mkdir {ROOT}
mount --bind {{directory}}/root {ROOT}
mount --make-shared {ROOT}
mount --bind {{directory}} /run/containerd
ln -s ctd.sock /run/containerd/containerd.sock
"""


def manifest(name: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((MANIFESTS / name).read_text()) if each["kind"] == kind]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Image:
    """What the pod runs: ``archive``, if there is one, is to be imported; ``programs`` are mounted."""

    name: str
    command: list[str]
    archive: Path | None = None
    programs: Sequence[str] = ()


@pytest.fixture(
    params=[
        "programs",
        pytest.param("Containerfile", marks=[pytest.mark.long, pytest.mark.lane("debootstrap")]),
    ]
)
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    if request.param == "programs":
        programs = [*PROGRAMS, str(CHECKOUT), sys.base_prefix]
        return Image(image.TEST_IMAGE, [sys.executable, "-m", "layerlimit"], programs=programs)
    (daemon_set,) = manifest("daemonset.yaml", "DaemonSet")
    name = "registry.example/" + daemon_set["spec"]["template"]["spec"]["containers"][0]["image"]
    root = tmp_path / "image"
    root.mkdir()
    command = containerfile.build(MANIFESTS / "Containerfile", root)
    layer = subprocess.run(["tar", "-C", root, "-c", "."], check=True, capture_output=True).stdout
    archive = image.archive(tmp_path / "image.tar", name, [layer])
    return Image(name, command, archive)


@dataclass
class DaemonPod:
    """The DaemonSet's pod on one node."""

    image: Image
    pods: cri.Pods
    directory: Path
    port: int
    sandbox: str = ""

    def start(self) -> None:
        (daemon_set,) = manifest("daemonset.yaml", "DaemonSet")
        spec = daemon_set["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        privileged = int(container["securityContext"]["privileged"])
        # On the node's network: there is no CNI here.
        namespaces = {1: _HOST, 2: _HOST if spec["hostPID"] else 0}
        sandbox = {
            1: {1: "layerlimit", 2: os.urandom(4).hex(), 3: "layerlimit"},
            8: {1: f"/{self.pods.cgroup}", 2: {1: namespaces, 6: privileged}},
        }
        config = {
            1: {1: "layerlimit"},
            2: {1: self.image.name},
            3: self.image.command,
            4: container["args"],
            6: {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            7: [*self._volumes(spec, container), *self._programs()],
            15: {2: {2: privileged, 3: namespaces}},
        }
        call = self.pods._call
        self.sandbox = _text(call("RunPodSandbox", {1: sandbox})[1])
        id = _text(call("CreateContainer", {1: self.sandbox, 2: config, 3: sandbox})[1])
        call("StartContainer", {1: id})
        awaited("the readiness probe to be answered", self._ready)

    def remove(self) -> None:
        self.pods.remove(self.sandbox)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _volumes(self, spec: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[dict[int, object]]:
        places = {each["name"]: each.get("hostPath", {}).get("path") for each in spec["volumes"]}
        for each in container["volumeMounts"]:
            propagation = _PROPAGATION[each.get("mountPropagation", "None")]
            host = places[each["name"]] or str(self._config_map())
            yield {1: each["mountPath"], 2: host, 3: int(each.get("readOnly", False)), 5: propagation}

    def _config_map(self) -> Path:
        (config_map,) = manifest("daemonset.yaml", "ConfigMap")
        directory = self.directory / "config"
        directory.mkdir(exist_ok=True)
        for name, text in config_map["data"].items():
            (directory / name).write_text(text.replace(":9745", f":{self.port}"), encoding="utf-8")
        return directory

    def _programs(self) -> Iterator[dict[int, object]]:
        for place in dict.fromkeys(self.image.programs):
            host, _, inside = place.partition(":")
            if Path(host).exists():  # /usr/lib64 is not on every architecture
                yield {1: inside or host, 2: host, 3: 1}


def _text(value: bytes | int) -> str:
    assert isinstance(value, bytes)
    return value.decode()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Island]:
    with island(tmp_path) as made:
        made.run("sh", "-euc", NODE.format(directory=tmp_path))
        yield made


@pytest.mark.timeout(1200)
def test_daemon_pod_serves_its_node(ground: Island, ours: Image) -> None:
    classes = [each["handler"] for each in manifest("runtimeclasses.yaml", "RuntimeClass")]
    (example,) = manifest("example-pod.yaml", "Pod")
    size = inside.MIB * 2048
    assert example["metadata"]["annotations"] == {"layerlimit/size": "2GiB"}

    containerd = Containerd(
        ground, CURRENT, classes, Path("/run/layerlimit/layerlimit.sock"), handlers=classes
    )
    containerd.start()
    archives = [image.test_image(ground.directory), image.pause_image(ground.directory)]
    for archive in (*archives, *([ours.archive] if ours.archive else [])):
        containerd.ctr("images", "import", "--local", archive, namespace="k8s.io")
    with cri.pods(containerd.address, ground.cgroup) as pods:
        awaited("CRI to answer", pods.ready)
        daemon = DaemonPod(ours, pods, ground.directory, free_port())
        daemon.start()
        sandbox = pods.run("limited", example["spec"]["runtimeClassName"], example["metadata"]["annotations"])
        container = pods.start(sandbox, "limited", image.TEST_IMAGE)
        assert inside.is_limit(inside.available(pods.sh(container, inside.FREE)[1]), size)
        mounted = points(ground)
        assert f"{ROOT}/img" in {str(Path(point).parent) for point in mounted}

        daemon.remove()
        assert points(ground) == mounted
        assert pods.sh(container, "echo kept >/kept")[0] == 0
        daemon.start()
        pods.remove(sandbox)
        awaited("its mounts to go", lambda: points(ground) == [])
        assert ground.loops() == []


def points(ground: Island) -> list[str]:
    """What the node sees mounted below layerlimit's root."""
    lines = Path(f"/proc/{ground.init}/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split()[4]).startswith(f"{ROOT}/")]
