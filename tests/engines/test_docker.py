"""Docker 29 on containerd's image store: ``--storage-opt size=`` is a limit again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines import image, inside
from tests.engines.conftest import Land
from tests.engines.daemons import CURRENT, Containerd, Docker, Snapshotter
from tests.engines.inside import MIB
from tests.engines.island import awaited

pytestmark = pytest.mark.lane("engines")

NAME = "layerlimit"
DEFAULT = 16 * MIB


@dataclass
class World:
    layerlimit: Snapshotter
    containerd: Containerd
    docker: Docker

    def sh(self, container: str, script: str) -> str:
        done = self.docker("exec", container, "sh", "-c", script, check=False)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(land: Land, archives: dict[str, Path]) -> Iterator[World]:
    with land() as ground:
        containerd = Containerd(ground, CURRENT, (NAME,), ground.directory / "layerlimit.sock")
        docker = Docker(ground, containerd, NAME, live_restore=True)
        options = ("--containerd", containerd.address, "--docker-root", docker.data_root)
        layerlimit = Snapshotter(ground, (f"{NAME}=16MiB",), options).start()
        containerd.start()
        docker.start()
        docker("load", "--input", archives["test"])
        yield World(layerlimit, containerd, docker)


def run(world: World, name: str, *options: str) -> str:
    """A container that does nothing; its name."""
    arguments = ("--detach", "--network=none", "--name", name, *options)
    world.docker("run", *arguments, image.TEST_IMAGE, "sleep", "3600")
    return name


def free(world: World, name: str) -> int:
    return inside.available(world.sh(name, inside.FREE))


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ((), DEFAULT),
        (("--storage-opt", "size=48m"), 48 * MIB),
        (("--storage-opt", "size=12m"), 12 * MIB),
    ],
    ids=["default", "raised", "lowered"],
)
def test_size_is_a_hard_limit(world: World, options: tuple[str, ...], limit: int) -> None:
    name = run(world, "sized", *options)
    assert inside.is_limit(free(world, name), limit)
    said = world.sh(name, inside.FILL)
    assert "No space left on device" in said
    assert limit - MIB <= inside.filled(said) <= limit * 1.02
    # It stays over a restart of the container, and so does what was written.
    world.docker("restart", "--time=0", name)
    assert free(world, name) < MIB
    assert inside.is_limit(inside.available(world.sh(name, f"rm /filled; {inside.FREE}")), limit)


@pytest.fixture(autouse=True)
def without_containers(world: World) -> Iterator[None]:
    """A test that fails leaves no container to the next."""
    yield
    names = world.docker("ps", "--all", "--quiet").stdout.split()
    if names:
        world.docker("rm", "--force", *names)


@pytest.mark.parametrize("size", ["banana", "-5m", "0"])
def test_bad_size_is_refused_by_name(world: World, size: str) -> None:
    done = world.docker(
        *("run", "--network=none", "--name", "bad", "--storage-opt", f"size={size}"),
        *(image.TEST_IMAGE, "true"),
        check=False,
    )
    assert done.returncode not in (0, 1)
    assert f"--storage-opt size={size}" in done.stderr
    world.docker("rm", "--force", "bad")
    assert awaited("nothing to be left", lambda: world.layerlimit.island.loops() == [])


def test_a_disk_below_its_floor_starts_nothing_and_leaves_nothing(world: World) -> None:
    def left() -> tuple[str, str]:
        return world.containerd.ctr("leases", "ls", "-q", namespace="moby").stdout, world.layerlimit.cli(
            "ls"
        ).stdout

    arguments = ("run", "--network=none", "--name", "late", image.TEST_IMAGE, "true")
    before = left()
    world.layerlimit.cli("config", "floor=1PiB")
    done = world.docker(*arguments, check=False)
    world.layerlimit.cli("config", "floor=0")
    assert done.returncode not in (0, 1)
    assert "less than the floor" in done.stderr
    world.docker("rm", "--force", "late")
    awaited("nothing to be left", lambda: left() == before)
    world.docker(*arguments)


def test_cp_into_an_unstarted_container(world: World) -> None:
    big, small = (world.docker.island.directory / name for name in ("big", "small"))
    big.write_bytes(bytes(28 * MIB))
    small.write_bytes(b"small\n")
    arguments = ("--network=none", "--name", "copied", "--storage-opt", "size=24m")
    world.docker("create", *arguments, image.TEST_IMAGE, "sleep", "3600")
    world.docker("cp", small, "copied:/small")
    assert world.docker("cp", big, "copied:/big", check=False).returncode != 0
    world.docker("start", "copied")
    assert world.sh("copied", "cat /small") == "small\n"
    said = world.sh("copied", f"rm -f /big; {inside.FREE}")
    assert DEFAULT < inside.available(said) <= 24 * MIB * 1.02
    world.docker("rm", "--force", "copied")


def test_diff_and_commit(world: World) -> None:
    name = run(world, "changed", "--storage-opt", "size=24m")
    world.sh(name, "echo made >/made; rm /old/kept; chmod 700 /etc/passwd")
    lines = world.docker("diff", name).stdout.splitlines()
    assert {"A /made", "D /old/kept", "C /etc/passwd"} <= set(lines)
    world.docker("commit", name, "localhost/committed:1")
    done = world.docker(
        *("run", "--rm", "--network=none", "localhost/committed:1", "sh", "-c"),
        f"cat /made; ls /old; {inside.FREE}",
    )
    assert done.stdout.splitlines()[0] == "made"
    assert "kept" not in done.stdout
    assert inside.is_limit(inside.available(done.stdout), DEFAULT)
    world.docker("rm", "--force", name)
    world.docker("rmi", "localhost/committed:1")


def test_classic_build(world: World) -> None:
    context = world.docker.island.directory / "context"
    context.mkdir()
    steps = f"FROM {image.TEST_IMAGE}\nRUN echo built >/built && rm /old/kept\nCOPY Dockerfile /copied\n"
    (context / "Dockerfile").write_text(steps)
    world.docker("build", "--network=none", "--tag", "localhost/built:1", context)
    script = "cat /built /copied; ls /old"
    done = world.docker("run", "--rm", "--network=none", "localhost/built:1", "sh", "-c", script)
    assert done.stdout == f"built\n{steps}"
    world.docker("rmi", "localhost/built:1")


def test_ends_of_daemons_disturb_no_container(world: World) -> None:
    name = run(world, "living", "--storage-opt", "size=24m")
    world.sh(name, "echo before >/before; sync")
    started = world.docker("inspect", "--format={{.State.StartedAt}}", name).stdout
    world.docker.restart()
    world.docker.restart(signal.SIGKILL)
    world.layerlimit.restart(signal.SIGKILL)
    world.containerd.restart()
    awaited("dockerd to find containerd again", lambda: world.sh(name, "cat /before") == "before\n")
    assert world.docker("inspect", "--format={{.State.StartedAt}}", name).stdout == started
    assert "No space left on device" in world.sh(name, inside.FILL)
    world.docker("restart", "--time=0", name)
    assert free(world, name) < MIB
    world.docker("rm", "--force", name)


def test_removal_leaves_nothing(world: World) -> None:
    ground = world.layerlimit.island
    before = ground.mounts(), world.layerlimit.cli("ls").stdout
    names = [run(world, f"many{number}", "--storage-opt", "size=24m") for number in range(3)]
    assert len(ground.loops()) == 3
    world.docker("rm", "--force", *names)
    awaited("loop devices to go", lambda: not ground.loops())
    awaited("the rest to go", lambda: (ground.mounts(), world.layerlimit.cli("ls").stdout) == before)
    assert world.layerlimit.cli("check").returncode == 0
