"""Which limit a snapshot has: by class, label, container, pod and ``--storage-opt``, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed

from layerlimit.containerd.wire import containers_pb2 as containers
from layerlimit.limit import Limit
from layerlimit.store import Policy, Store
from tests.containerd.client import MIB, NAME, Client, Daemon, Refused, clear, mount, unmount

pytestmark = pytest.mark.lane("root", "overlay", "loop")

MAX_SIZE = "containerd.io/snapshot/max-size"
SIZE, INODES, IN_FORCE = "layerlimit/size", "layerlimit/inodes", "layerlimit/limit.bytes"
ID = "0123456789abcdef" * 4


class Engine:
    """containerd's containers service, as far as it is asked."""

    def __init__(self, address: Path) -> None:
        self.known: dict[tuple[str, str], containers.Container] = {}
        self._server = grpc.server(ThreadPoolExecutor(2))
        get = grpc.unary_unary_rpc_method_handler(
            self._get,
            request_deserializer=containers.GetContainerRequest.FromString,
            response_serializer=containers.GetContainerResponse.SerializeToString,
        )
        service = "containerd.services.containers.v1.Containers"
        handler = grpc.method_handlers_generic_handler(service, {"Get": get})
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{address}")
        self._server.start()

    def _get(self, request: Any, context: Any) -> Any:
        sent = dict(context.invocation_metadata())
        found = self.known.get((str(sent.get("containerd-namespace")), request.id))
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such container")
        return containers.GetContainerResponse(container=found)

    def container(self, namespace: str, id: str, labels: dict[str, str], **metadata: Any) -> None:
        found = containers.Container(id=id, labels=labels)
        for name, value in metadata.items():
            packed = Packed(value=json.dumps({"Version": "v1", "Metadata": value}).encode())
            found.extensions[f"io.cri-containerd.{name}.metadata"].CopyFrom(packed)
        self.known[namespace, id] = found

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    found = Engine(tmp_path / "c")
    yield found
    found.stop()


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    (tmp_path / "docker/containers").mkdir(parents=True)
    return tmp_path / "docker"


@pytest.fixture
def daemon(tmp_path: Path, engine: Engine, docker: Path) -> Iterator[Daemon]:
    config = tmp_path / "config.toml"
    bounded = '[[snapshotters]]\nname = "bounded"\ndefault_limit = "16MiB"\nmaximum = "32MiB"\n'
    config.write_text(f'[[snapshotters]]\nname = "{NAME}"\n{bounded}')
    options = ("--config", str(config), "--containerd", str(tmp_path / "c"), "--docker-root", str(docker))
    found = Daemon(tmp_path, options).start()
    yield found
    found.end()
    clear(found.root)


def in_force(snapshots: Client, key: str) -> int | None:
    found = snapshots.stat(key).labels.get(IN_FORCE)
    return int(found) if found else None


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert caught.value.code == "INVALID_ARGUMENT"
    return caught.value.text


@pytest.mark.parametrize(
    ("labels", "limit"),
    [
        ({}, 16 * MIB),
        ({MAX_SIZE: str(8 * MIB)}, 8 * MIB),
        ({MAX_SIZE: "8m"}, 8 * MIB),
        ({SIZE: "24Mi"}, 24 * MIB),
        ({SIZE: "8MiB", MAX_SIZE: str(8 * MIB), INODES: "100"}, 8 * MIB),
        ({INODES: "100"}, 16 * MIB),
    ],
    ids=str,
)
def test_labels_of_the_snapshot(daemon: Daemon, tmp_path: Path, labels: dict[str, str], limit: int) -> None:
    snapshots, at = daemon.of("bounded"), tmp_path / "at"
    snapshots.layer("base")
    mount(snapshots.prepare_with("default/1/a", "base", labels), at)
    assert in_force(snapshots, "default/1/a") == limit
    space = os.statvfs(at)
    assert limit <= space.f_bavail * space.f_frsize <= limit * 1.02
    if INODES in labels:
        assert space.f_favail >= 100
    with pytest.raises(OSError, match="No space"):
        (at / "big").write_bytes(bytes(limit + MIB))
    unmount(at)


@pytest.mark.parametrize(
    "labels",
    [{MAX_SIZE: bad} for bad in ("abc", "0", "-1", "1x", "9" * 30, "33MiB", " ")]
    + [{SIZE: "0"}, {SIZE: "8m", MAX_SIZE: "9m"}, {INODES: "0"}, {INODES: "many"}],
    ids=str,
)
def test_bad_labels_are_refused_and_named(daemon: Daemon, labels: dict[str, str]) -> None:
    snapshots = daemon.of("bounded")
    said = refusal(snapshots.prepare_with, "default/1/a", "", labels)
    assert "maximum" in said or all(key in said for key in labels)
    assert snapshots.names() == set()


@pytest.mark.parametrize(
    "key",
    [
        "k8s.io/1/extract-1-a sha256:1",
        "moby/1/extract-1-a-sha256:1",
        f"moby/1/{ID}-init-key",
        f"moby/1/{ID}",
        f"moby/1/{ID[:25]}",
        f"buildkit/1/{ID[:25]}",
    ],
)
def test_content_of_images_is_not_limited(daemon: Daemon, key: str) -> None:
    snapshots = daemon.of("bounded")
    snapshots.prepare_with(key, "", {MAX_SIZE: "1", SIZE: "banana"})
    assert snapshots.mounts(key)
    snapshots.update(key, {MAX_SIZE: "banana"})
    assert in_force(snapshots, key) is None


@pytest.mark.parametrize("key", [f"k8s.io/1/{ID}", f"default/1/{ID}-init-key", f"default/1/{ID[:25]}"])
def test_only_builders_are_taken_for_builders(daemon: Daemon, key: str) -> None:
    daemon.of("bounded").prepare(key)
    assert in_force(daemon.of("bounded"), key) == 16 * MIB


def test_labels_of_a_container(daemon: Daemon, engine: Engine) -> None:
    snapshots = daemon.of("bounded")
    snapshots.prepare_with("default/1/web", "", {SIZE: "12m"})
    snapshots.mounts("default/1/web")
    assert in_force(snapshots, "default/1/web") == 12 * MIB
    engine.container("default", "web", {SIZE: "24m"})
    engine.container("other", "web", {SIZE: "8m"})
    snapshots.mounts("default/1/web")
    assert in_force(snapshots, "default/1/web") == 24 * MIB
    engine.container("default", "web", {SIZE: "banana"})
    assert "layerlimit/size=banana" in refusal(snapshots.mounts, "default/1/web")
    engine.container("default", "web", {SIZE: "33m"})
    assert "maximum" in refusal(snapshots.mounts, "default/1/web")


def test_annotations_of_a_pod_and_its_container(daemon: Daemon, engine: Engine) -> None:
    snapshots = daemon.of("bounded")
    for key in ("pod", "one", "two"):
        snapshots.prepare(f"k8s.io/1/{key}")
    # What its image says comes as a label of the container.
    image = {SIZE: "31m"}
    engine.container("k8s.io", "pod", image, sandbox={"Config": {"annotations": {SIZE: "20Mi"}}})
    engine.container("k8s.io", "one", image, container={"SandboxID": "pod", "Config": {"annotations": {}}})
    own = {"SandboxID": "pod", "Config": {"annotations": {SIZE: "24Mi"}}}
    engine.container("k8s.io", "two", image, container=own)
    for key, limit in (("pod", 20), ("one", 20), ("two", 24)):
        snapshots.mounts(f"k8s.io/1/{key}")
        assert in_force(snapshots, f"k8s.io/1/{key}") == limit * MIB


def test_silent_containerd_lets_nothing_start(daemon: Daemon, engine: Engine) -> None:
    snapshots = daemon.of("bounded")
    snapshots.prepare("default/1/web")
    engine.stop()
    with pytest.raises(Refused) as caught:
        snapshots.mounts("default/1/web")
    assert caught.value.code == "UNAVAILABLE"
    assert "--containerd" in caught.value.text


def docker_container(snapshots: Client) -> str:
    if "moby/1/chain" not in snapshots.names():
        snapshots.layer("moby/1/chain")
    snapshots.prepare(f"moby/2/{ID}-init-key", "moby/1/chain")
    snapshots.commit(f"moby/3/{ID}-init", f"moby/2/{ID}-init-key")
    snapshots.prepare(f"moby/4/{ID}", f"moby/3/{ID}-init")
    return f"moby/4/{ID}"


def host_config(docker: Path, **options: str) -> None:
    (docker / "containers" / ID).mkdir(exist_ok=True)
    text = json.dumps({"Binds": None, "StorageOpt": options or None})
    (docker / "containers" / ID / "hostconfig.json").write_text(text)


def test_storage_opt_of_docker(daemon: Daemon, docker: Path) -> None:
    snapshots = daemon.of("bounded")
    key = docker_container(snapshots)
    assert "--docker-root" in refusal(snapshots.mounts, key)
    (docker / "containers" / ID).mkdir()
    snapshots.mounts(key)  # in the middle of create
    assert in_force(snapshots, key) == 16 * MIB
    host_config(docker)
    snapshots.mounts(key)
    assert in_force(snapshots, key) == 16 * MIB
    host_config(docker, size="24m")
    snapshots.mounts(key)
    snapshots.mounts(key)
    assert in_force(snapshots, key) == 24 * MIB


@pytest.mark.parametrize(
    "options", [{"size": bad} for bad in ("abc", "0", "-5m", "1g")] + [{"inode": "1"}], ids=str
)
def test_bad_storage_opt_is_refused_by_name(daemon: Daemon, docker: Path, options: dict[str, str]) -> None:
    snapshots = daemon.of("bounded")
    key = docker_container(snapshots)
    host_config(docker, **options)
    ((name, value),) = options.items()
    said = refusal(snapshots.mounts, key)
    assert f"--storage-opt {name}={value}" in said or "maximum" in said


@pytest.mark.parametrize("name", ["bounded", NAME], ids=["limited", "unlimited"])
def test_without_room_docker_is_refused_in_mounts(daemon: Daemon, docker: Path, name: str) -> None:
    """A Prepare that fails would leave Docker's lease and what it made before; not so a start."""
    snapshots = daemon.of(name)
    snapshots.layer("moby/1/chain")
    with Store(daemon.root) as store:
        store.configure(Policy(floor=1 << 60))
        key = docker_container(snapshots)
        host_config(docker)
        for _ in range(2):
            with pytest.raises(Refused, match=r"less than the floor.*host\.full") as caught:
                snapshots.mounts(key)
            assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert in_force(snapshots, key) is None
        snapshots.update(key, {"a": "b"})
        with pytest.raises(Refused):
            snapshots.mounts(key)
        for other in ("default/1/web", f"moby/5/{ID[:25]}"):  # who fails without leaving anything
            with pytest.raises(Refused, match="less than the floor"):
                snapshots.prepare(other)
        store.configure(Policy())
        snapshots.mounts(key)
        assert in_force(snapshots, key) == (16 * MIB if name == "bounded" else None)
        store.configure(Policy(floor=1 << 60))
        snapshots.mounts(key)  # it was admitted


def test_a_changed_limit_outlives_a_restart(daemon: Daemon, engine: Engine) -> None:
    snapshots = daemon.of("bounded")
    snapshots.prepare("default/1/web")
    engine.container("default", "web", {SIZE: "18m"})
    snapshots.mounts("default/1/web")
    # As if `layerlimit resize` had been called: unmounted, so that any kernel can do it.
    with Store(daemon.root, namespace="bounded") as store:
        store.driver.release(store.stat("default/1/web").id)
        store.resize("default/1/web", Limit(30 * MIB))
    snapshots.mounts("default/1/web")
    assert in_force(snapshots, "default/1/web") == 30 * MIB
    engine.container("default", "web", {SIZE: "32m"})
    snapshots.mounts("default/1/web")
    assert in_force(snapshots, "default/1/web") == 32 * MIB
