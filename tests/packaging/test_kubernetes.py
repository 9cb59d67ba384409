"""The manifests: Kubernetes' own schemas, and that names, paths and ports agree with the guide and `setup`.

That the DaemonSet's pod works is shown by tests/packaging/test_pod.py.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import utils as schemas  # type: ignore[import-untyped]

from layerlimit import __version__
from layerlimit.daemon.config import Config, parse_address, parse_config
from layerlimit.limit import parse_size
from layerlimit.setup import Stanzas, set_up_containerd

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "packaging" / "kubernetes"
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()


def objects(name: str, kind: str) -> list[dict[str, Any]]:
    found = [each for each in yaml.safe_load_all((MANIFESTS / name).read_text()) if each["kind"] == kind]
    assert found, f"no {kind} in {name}"
    return found


@pytest.fixture(scope="module")
def config() -> Config:
    (config_map,) = objects("daemonset.yaml", "ConfigMap")
    return parse_config(config_map["data"]["config.toml"], source="ConfigMap")


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    (daemon_set,) = objects("daemonset.yaml", "DaemonSet")
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]
    assert daemon_set["spec"]["selector"]["matchLabels"].items() <= labels.items()
    spec: dict[str, Any] = daemon_set["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    assert isinstance(found, dict)
    return found


def test_everything_is_in_one_namespace() -> None:
    (namespace,) = objects("daemonset.yaml", "Namespace")
    for kind in ("ConfigMap", "DaemonSet"):
        assert {each["metadata"]["namespace"] for each in objects("daemonset.yaml", kind)} == {
            namespace["metadata"]["name"]
        }


@pytest.mark.parametrize("version", [schemas.all_versions()[0], schemas.all_versions()[-1]])
@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_kubernetes_accepts_the_manifests(path: Path, version: str) -> None:
    """Every field exists there, has the right type and none is missing."""
    for each in yaml.safe_load_all(path.read_text()):
        schemas.validate(each, version, strict=True)


def test_the_pod_needs_no_account_and_not_itself(pod: dict[str, Any]) -> None:
    assert pod["hostPID"] is True  # `check` names the processes of the node that hold a layer
    assert pod["automountServiceAccountToken"] is False
    assert "runtimeClassName" not in pod


def test_paths_are_the_same_inside_and_on_the_host(
    config: Config, pod: dict[str, Any], container: dict[str, Any]
) -> None:
    """What we tell containerd are paths; it opens them on the host."""
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    for name, volume in volumes.items():
        if "hostPath" in volume:
            assert volume["hostPath"]["path"] == mounts[name]["mountPath"]
    assert mounts["dev"]["mountPath"] == "/dev"
    # Without a file on the node, `setup containerd` writes the defaults.
    defaults = Config()
    assert (config.root, config.address, config.containerd) == (
        defaults.root,
        defaults.address,
        defaults.containerd,
    )
    (config_map,) = objects("daemonset.yaml", "ConfigMap")
    assert volumes["config"]["configMap"]["name"] == config_map["metadata"]["name"]


def test_the_port_is_that_of_the_metrics(config: Config, container: dict[str, Any]) -> None:
    place = parse_address(config.metrics.address)
    assert isinstance(place, tuple)
    (port,) = container["ports"]
    assert port["containerPort"] == place[1]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    (daemon_set,) = objects("daemonset.yaml", "DaemonSet")
    annotations = daemon_set["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(place[1])


def test_each_class_is_a_snapshotter_and_a_runtime(config: Config) -> None:
    handlers = [each["handler"] for each in objects("runtimeclasses.yaml", "RuntimeClass")]
    names = [each.name for each in config.snapshotters]
    assert handlers == names
    assert all(each.limit for each in config.snapshotters)
    stanzas = Stanzas(tuple(names), config.address, config.root, runtimes=True)
    edit = set_up_containerd(Path("config.toml"), None, stanzas, installed=(2, 2))
    written = tomllib.loads(edit.after)
    assert list(written["proxy_plugins"]) == names
    runtimes = written["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert {name: each["snapshotter"] for name, each in runtimes.items()} == dict(
        zip(names, names, strict=True)
    )
    command = (
        "layerlimit setup containerd " + " ".join(f"--snapshotter {name}" for name in names) + " --runtimes"
    )
    for text in (GUIDE, (MANIFESTS / "daemonset.yaml").read_text()):
        assert command in " ".join(text.replace("\\\n", " ").replace("#", " ").split())


def test_the_example_fits_its_class(config: Config) -> None:
    (pod,) = objects("example-pod.yaml", "Pod")
    (its,) = [each for each in config.snapshotters if each.name == pod["spec"]["runtimeClassName"]]
    assert its.maximum_bytes is not None
    assert parse_size(pod["metadata"]["annotations"]["layerlimit/size"]) <= its.maximum_bytes
    assert "layerlimit/size" in GUIDE


def test_the_image_is_this_version(container: dict[str, Any]) -> None:
    image = f"layerlimit:{__version__}"
    assert container["image"] == image
    assert f"-t {image} " in (MANIFESTS / "Containerfile").read_text()
    assert f"-t {image} " in GUIDE
