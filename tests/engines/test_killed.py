"""``layerlimit serve`` killed at the worst moments: containers go on, nothing is lost, nothing leaks."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines import image, inside
from tests.engines.conftest import Land
from tests.engines.daemons import (
    CURRENT,
    RELEASES,
    Containerd,
    Docker,
    Release,
    Snapshotter,
    registry,
    unused_port,
)
from tests.engines.inside import MIB
from tests.engines.island import awaited

pytestmark = pytest.mark.lane("engines")

NAME = "layerlimit"
LAYERS = 12
LARGE = 96 * MIB


@pytest.fixture(params=RELEASES)
def world(request: pytest.FixtureRequest, land: Land) -> Iterator[tuple[Containerd, Snapshotter]]:
    release: Release = request.param
    with land() as ground:
        address = ground.directory / "ctd.sock"
        layerlimit = Snapshotter(ground, (f"{NAME}=16MiB",), ("--containerd", address)).start()
        yield Containerd(ground, release, (NAME,), layerlimit.socket).start(), layerlimit


def is_clean(engine: Containerd, layerlimit: Snapshotter) -> None:
    """After everything was removed, nothing is left anywhere."""
    awaited("the snapshots to go", lambda: not engine.snapshots(NAME))
    awaited(
        "the store to be empty", lambda: json.loads(layerlimit.cli("--format", "json", "ls").stdout) == []
    )
    awaited("loop devices to go", lambda: not layerlimit.island.loops())
    assert not [point for point in layerlimit.island.mounts() if point.startswith(f"{layerlimit.root}/")]
    assert layerlimit.cli("check").returncode == 0


def test_containers_go_on(world: tuple[Containerd, Snapshotter], archives: dict[str, Path]) -> None:
    engine, layerlimit = world
    engine.load(archives["test"], NAME)
    engine.start_container("living", image.TEST_IMAGE, snapshotter=NAME)
    layerlimit.daemon.end(signal.SIGKILL)
    assert engine.sh("living", f"{inside.write(4)} && sync && echo written").stdout.endswith("written\n")
    refused = engine.run("refused", image.TEST_IMAGE, "/bin/true", snapshotter=NAME)
    assert refused.returncode != 0
    layerlimit.start()
    engine.reach(NAME)
    engine.start_container("next", image.TEST_IMAGE, snapshotter=NAME)
    assert engine.sh("living", "stat -c %s /written").stdout == f"{4 * MIB}\n"
    assert "No space left on device" in engine.sh("living", inside.FILL).stderr
    for id in ("living", "next"):
        engine.remove_container(id)
    engine.ctr("containers", "delete", "refused", check=False)
    engine.ctr("images", "rm", "--sync", image.TEST_IMAGE)
    is_clean(engine, layerlimit)


@contextmanager
def killed_after(layerlimit: Snapshotter, made: int) -> Iterator[None]:
    """Kills the daemon as soon as it has made so many more layers, while the body runs."""
    directory = layerlimit.root / "layers"
    known = set(directory.iterdir())

    def kill() -> None:
        awaited("layers to be made", lambda: len(set(directory.iterdir()) - known) >= made, seconds=20)
        layerlimit.daemon.end(signal.SIGKILL)

    with ThreadPoolExecutor(1) as threads:
        killing = threads.submit(kill)
        try:
            yield
        finally:
            killing.result()


def test_unpacking_is_finished_later(world: tuple[Containerd, Snapshotter], tmp_path: Path) -> None:
    engine, layerlimit = world
    data = [(f"data{number}", os.urandom(MIB), 0o644) for number in range(LAYERS)]
    layers = [*image.busybox_layers(), *(image.layer(file) for file in data)]
    archive = image.archive(tmp_path / "many.tar", image.TEST_IMAGE, layers)
    with killed_after(layerlimit, LAYERS // 2):
        done = engine.ctr("images", "import", "--snapshotter", NAME, archive, check=False)
    assert done.returncode != 0, done.stdout
    layerlimit.start()
    engine.reach(NAME)
    engine.load(archive, NAME)
    script = "cat /data* | stat -c %s /data11; ls /old"
    said = engine.run("whole", image.TEST_IMAGE, "/bin/sh", "-c", script, snapshotter=NAME)
    assert said.stdout.split() == [str(MIB), "kept"], said.stderr
    engine.ctr("images", "rm", "--sync", image.TEST_IMAGE)
    is_clean(engine, layerlimit)


# -- in the middle of a layer, which our differ unpacks -------------------------------------------------


@pytest.fixture
def unpacking(land: Land) -> Iterator[tuple[Containerd, Snapshotter]]:
    with land() as ground:
        containerd = Containerd(ground, CURRENT, (NAME,), ground.directory / "layerlimit.sock", differ=True)
        options = ("--containerd", containerd.address, "--docker-root", ground.directory / "docker")
        layerlimit = Snapshotter(ground, (f"{NAME}=16MiB",), options).start()
        yield containerd.start(), layerlimit


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose last layer takes a while to unpack, although it is soon packed and read."""
    layers = [*image.busybox_layers(), image.layer(("large", bytes(LARGE), 0o644))]
    return image.archive(tmp_path_factory.mktemp("images") / "large.tar", image.TEST_IMAGE, layers)


def kill_in_apply(
    layerlimit: Snapshotter, unpack: Callable[[], object], forget: Callable[[], object]
) -> None:
    """Has the daemon killed while its differ extracts the large file, and a new one started."""
    for _ in range(10):
        before = layerlimit.calls("Apply")
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(unpack)
            awaited("the last layer", lambda: [*layerlimit.root.glob("diff/*/large")], seconds=20)
            layerlimit.daemon.end(signal.SIGKILL)
            running.result()
        layerlimit.start()
        if layerlimit.calls("Apply") == before + 2:
            return  # the large layer's was not answered
        forget()
    raise AssertionError("it was never killed in the middle")


@pytest.mark.long
def test_a_layer_is_unpacked_anew_after_containerd_was_killed(
    unpacking: tuple[Containerd, Snapshotter], large: Path
) -> None:
    engine, layerlimit = unpacking
    line: list[str | Path] = ["images", "import", "--snapshotter", NAME, large]
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lambda: engine.ctr(*line, check=False))
        awaited("the last layer", lambda: [*layerlimit.root.glob("diff/*/large")], seconds=20)
        engine.daemon.end(signal.SIGKILL)
        assert running.result().returncode != 0
    engine.start()
    engine.ctr(*line)
    said = engine.run("whole", image.TEST_IMAGE, "/bin/sh", "-c", LOOK, snapshotter=NAME)
    assert holds_all(said.stdout), said.stderr
    engine.ctr("images", "rm", "--sync", image.TEST_IMAGE)
    # What was half unpacked is the killed import's for a day, by a lease of containerd's.
    leases = engine.ctr("leases", "ls", "--quiet").stdout.split()
    engine.ctr("leases", "rm", "--sync", *leases)
    is_clean(engine, layerlimit)


@pytest.mark.long
def test_a_layer_is_exported_anew(
    unpacking: tuple[Containerd, Snapshotter], archives: dict[str, Path]
) -> None:
    """The daemon is killed while Docker has it write a container's changes."""
    engine, layerlimit = unpacking
    docker = Docker(engine.island, engine, NAME, live_restore=True).start()
    docker("load", "--input", archives["test"])
    limited = ("--detach", "--network=none", "--name", "changed", "--storage-opt", "size=400m")
    docker("run", *limited, image.TEST_IMAGE, "sleep", "3600")
    docker("exec", "changed", "sh", "-c", f"dd if=/dev/urandom of=/large bs=1048576 count={LARGE // MIB}")
    uploads = engine.island.directory / "containerd/io.containerd.content.v1.content/ingest"
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lambda: docker("commit", "changed", "localhost/changed:1", check=False))
        awaited("the upload", lambda: any(path.stat().st_size for path in uploads.glob("*/data")))
        layerlimit.daemon.end(signal.SIGKILL)
        assert running.result().returncode != 0
    layerlimit.start()
    engine.reach(NAME)
    docker("commit", "changed", "localhost/changed:1")
    said = docker("run", "--rm", "--network=none", "localhost/changed:1", "sh", "-c", LOOK)
    assert holds_all(said.stdout), said.stderr
    docker("rm", "--force", "changed")
    docker("rmi", "localhost/changed:1", image.TEST_IMAGE)
    is_clean(engine, layerlimit)


def holds_all(said: str) -> bool:
    return said.split() == [str(LARGE), "kept", "new"]


LOOK = "stat -c %s /large; ls /old; cat /new"


@pytest.mark.parametrize("way", [pytest.param("client", marks=pytest.mark.long), "transfer"])
def test_a_layer_half_unpacked_is_unpacked_anew(
    unpacking: tuple[Containerd, Snapshotter], large: Path, way: str
) -> None:
    engine, layerlimit = unpacking
    line: list[str | Path] = ["images", "import", "--snapshotter", NAME]
    line += ["--local"] if way == "client" else []

    def forget() -> None:
        engine.ctr("images", "rm", "--sync", image.TEST_IMAGE, check=False)
        awaited("the snapshots to go", lambda: not engine.snapshots(NAME))

    kill_in_apply(layerlimit, lambda: engine.ctr(*line, large, check=False), forget)
    engine.reach(NAME)
    engine.ctr(*line, large)
    said = engine.run("whole", image.TEST_IMAGE, "/bin/sh", "-c", LOOK, snapshotter=NAME)
    assert holds_all(said.stdout), said.stderr
    forget()
    is_clean(engine, layerlimit)


@pytest.mark.parametrize("way", [pytest.param("load", marks=pytest.mark.long), "pull"])
def test_docker_unpacks_it_anew(unpacking: tuple[Containerd, Snapshotter], large: Path, way: str) -> None:
    engine, layerlimit = unpacking
    docker = Docker(engine.island, engine, NAME).start()
    line: list[str | Path] = ["load", "--input", large]
    name = image.TEST_IMAGE
    if way == "pull":
        port = unused_port()
        registry(engine.island, port)
        name = f"127.0.0.1:{port}/test:1"
        docker(*line)
        docker("tag", image.TEST_IMAGE, name)
        docker("push", name)
        docker("rmi", name, image.TEST_IMAGE)
        line = ["pull", name]

    def forget() -> None:
        docker("rmi", name, check=False)
        awaited("the layers to go", lambda: not [*layerlimit.root.glob("diff/*/large")])

    forget()
    kill_in_apply(layerlimit, lambda: docker(*line, check=False), forget)
    engine.reach(NAME)
    docker(*line)
    limited = ("--network=none", "--storage-opt", "size=12m")
    said = docker("run", "--rm", *limited, name, "sh", "-c", LOOK)
    assert holds_all(said.stdout), said.stderr
    assert not [*layerlimit.root.glob("lost/*")]
    forget()
    is_clean(engine, layerlimit)
