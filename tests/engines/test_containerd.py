"""containerd with ``ctr`` and runc: limits by class, snapshot label and container label, on 1.x and 2.x."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import image, inside
from tests.engines.conftest import Land
from tests.engines.daemons import RELEASES, Containerd, Snapshotter
from tests.engines.inside import MIB
from tests.engines.island import awaited

pytestmark = pytest.mark.lane("engines")

MAX_SIZE = "containerd.io/snapshot/max-size"
PLAIN, SMALL = "layerlimit", "small"
SMALL_LIMIT = 16 * MIB


@pytest.fixture(scope="module", params=RELEASES)
def engine(request: pytest.FixtureRequest, land: Land, archives: dict[str, Path]) -> Iterator[Containerd]:
    """A containerd with two classes of one layerlimit, the test image unpacked for both."""
    with land() as ground:
        layerlimit = Snapshotter(
            ground, (PLAIN, f"{SMALL}=16MiB"), ("--containerd", ground.directory / "ctd.sock")
        ).start()
        engine = Containerd(ground, request.param, (PLAIN, SMALL), layerlimit.socket).start()
        for name in (PLAIN, SMALL):
            engine.load(archives["test"], name)
        yield engine


@pytest.fixture
def layerlimit(engine: Containerd) -> Snapshotter:
    return Snapshotter(engine.island)


def sh(engine: Containerd, id: str, script: str, *options: str, snapshotter: str = PLAIN) -> str:
    """Runs a script in a container of its own; all it printed."""
    done = engine.run(id, image.TEST_IMAGE, "/bin/sh", "-c", script, snapshotter=snapshotter, options=options)
    return done.stderr + done.stdout


def test_layers_are_stacked(engine: Containerd) -> None:
    said = sh(engine, "stacked", "ls /old /hidden; cat /new")
    assert said.split()[-5:] == ["/hidden:", "above", "/old:", "kept", "new"]


@pytest.mark.parametrize(
    ("snapshotter", "options", "limit"),
    [
        (SMALL, (), SMALL_LIMIT),
        (PLAIN, ("--snapshotter-label", f"{MAX_SIZE}={24 * MIB}"), 24 * MIB),
        (PLAIN, ("--label", "layerlimit/size=24MiB"), 24 * MIB),
        (SMALL, ("--label", "layerlimit/size=24MiB"), 24 * MIB),
    ],
    ids=["class", "snapshot label", "container label", "container label over class"],
)
def test_limit_is_hard(engine: Containerd, snapshotter: str, options: tuple[str, ...], limit: int) -> None:
    said = sh(engine, "hard", f"{inside.FREE}; {inside.FILL}", *options, snapshotter=snapshotter)
    assert inside.is_limit(inside.available(said), limit), said
    assert "No space left on device" in said
    assert limit - MIB <= inside.filled(said) <= limit * 1.02


def test_without_a_limit_is_the_host(engine: Containerd) -> None:
    assert inside.available(sh(engine, "free", inside.FREE)) > 512 * MIB


@pytest.mark.parametrize("value", ["banana", "-1", "0"])
def test_bad_limit_is_refused(engine: Containerd, value: str) -> None:
    before = engine.snapshots(PLAIN)
    said = sh(engine, "bad", "echo ran", "--snapshotter-label", f"{MAX_SIZE}={value}")
    assert "ran" not in said.split()
    assert MAX_SIZE in said
    assert value in said
    awaited("nothing to be left of it", lambda: engine.snapshots(PLAIN) == before)


@pytest.mark.lane("resource")  # or the kernel grows no mounted file system
def test_limit_grows_while_running(engine: Containerd) -> None:
    options = ("--snapshotter-label", f"{MAX_SIZE}={8 * MIB}")
    engine.start_container("grows", image.TEST_IMAGE, snapshotter=PLAIN, options=options)
    assert engine.sh("grows", inside.write(12), check=False).returncode != 0
    engine.ctr("snapshots", "--snapshotter", PLAIN, "label", "grows", f"{MAX_SIZE}={32 * MIB}")
    assert inside.available(engine.sh("grows", f"rm /written; {inside.FREE}").stdout) >= 32 * MIB - 64 * 1024
    engine.sh("grows", inside.write(24))
    info = engine.ctr("snapshots", "--snapshotter", PLAIN, "info", "grows").stdout
    assert str(32 * MIB) in info
    engine.remove_container("grows")


def test_usage_is_what_was_written(engine: Containerd) -> None:
    engine.start_container("used", image.TEST_IMAGE, snapshotter=SMALL)
    engine.sh("used", f"{inside.write(10)}; sync")
    said = engine.ctr("snapshots", "--snapshotter", SMALL, "usage", "used").stdout
    number, unit = re.search(r"used\s+([\d.]+) (\w+)", said).groups()  # type: ignore[union-attr]
    assert unit == "MiB"
    assert 10 <= float(number) <= 10.5
    engine.remove_container("used")


def test_changes_are_committed_and_exported(engine: Containerd) -> None:
    engine.start_container("made", image.TEST_IMAGE, snapshotter=SMALL)
    engine.sh("made", "echo made >/made; rm /old/kept; chmod 700 /etc/passwd")
    tar = engine.island.directory / "changes.tar.gz"
    ctr = f"{engine.release.programs}/ctr --address {engine.address} --namespace {engine.island.cgroup}"
    engine.island.run("sh", "-c", f"{ctr} snapshots --snapshotter {SMALL} diff made >{tar}")
    with tarfile.open(tar) as opened:
        names = {entry.name.strip("/"): entry for entry in opened}
    assert {"made", "old/.wh.kept", "etc/passwd"} <= set(names)
    assert names["etc/passwd"].mode & 0o777 == 0o700
    # A frozen layer is the parent of the next, and no longer a container's.
    engine.ctr("tasks", "kill", "--signal", "SIGKILL", "made")
    engine.ctr("tasks", "delete", "--force", "made")
    engine.ctr("snapshots", "--snapshotter", SMALL, "commit", "frozen", "made")
    engine.ctr("containers", "delete", "--keep-snapshot", "made")
    engine.ctr("snapshots", "--snapshotter", SMALL, "prepare", "above", "frozen")
    mounting = engine.ctr(
        "snapshots", "--snapshotter", SMALL, "mounts", engine.island.directory / "seen", "above"
    )
    (engine.island.directory / "seen").mkdir()
    script = f"{mounting.stdout}\ncd {engine.island.directory}/seen && cat made && ls old && df -k . | sed 1d"
    said = engine.island.run("sh", "-c", script).stdout
    assert said.splitlines()[0] == "made"
    assert "kept" not in said
    assert inside.is_limit(inside.available(said), SMALL_LIMIT)
    engine.island.run("umount", engine.island.directory / "seen")
    for key in ("above", "frozen"):
        engine.ctr("snapshots", "--snapshotter", SMALL, "rm", key)


def test_annotations_of_an_image_limit_nothing(engine: Containerd, tmp_path: Path) -> None:
    hostile = {MAX_SIZE: str(MIB), "layerlimit/size": "1MiB", "containerd.io/snapshot/layerlimit": "1MiB"}
    name = "localhost/hostile:1"
    below = image.layer(*[(f"data{number}", bytes([number]) * MIB, 0o644) for number in range(4)])
    layers = [*image.busybox_layers(), below]
    engine.load(image.archive(tmp_path / "hostile.tar", name, layers, annotations=hostile), PLAIN)
    done = engine.run("victim", name, "/bin/sh", "-c", f"ls /data3; {inside.FREE}", snapshotter=PLAIN)
    assert "/data3" in done.stdout, done.stderr
    assert inside.available(done.stdout) > 512 * MIB
    engine.ctr("images", "rm", "--sync", name)


def test_classes_do_not_see_each_other(engine: Containerd) -> None:
    for name in (PLAIN, SMALL):
        engine.start_container(f"in-{name}", image.TEST_IMAGE, snapshotter=name)
    ours = engine.snapshots(SMALL)
    assert f"in-{PLAIN}" not in ours
    # Removal makes containerd list one class and remove what it does not know there.
    engine.remove_container(f"in-{PLAIN}")
    awaited("the collection", lambda: f"in-{PLAIN}" not in engine.snapshots(PLAIN))
    engine.restart()
    assert engine.snapshots(SMALL) == ours
    assert engine.sh(f"in-{SMALL}", "cat /new").stdout == "new\n"
    engine.remove_container(f"in-{SMALL}")


def test_removal_leaves_nothing(engine: Containerd, layerlimit: Snapshotter) -> None:
    """The last of the module: it takes away the images of the others."""
    ground = engine.island
    for name in (PLAIN, SMALL):
        engine.start_container(f"in-{name}", image.TEST_IMAGE, snapshotter=name)
        engine.sh(f"in-{name}", inside.write(4))
    awaited("only this container's image to be attached", lambda: len(ground.loops()) == 1)
    for name in (PLAIN, SMALL):
        engine.remove_container(f"in-{name}")
    engine.ctr("images", "rm", "--sync", image.TEST_IMAGE)
    awaited("snapshots to go", lambda: not engine.snapshots(PLAIN) and not engine.snapshots(SMALL))
    awaited(
        "the store to be empty", lambda: json.loads(layerlimit.cli("--format", "json", "ls").stdout) == []
    )
    awaited("loop devices to go", lambda: not ground.loops())
    assert not [point for point in ground.mounts() if point.startswith(f"{layerlimit.root}/")]
    assert layerlimit.cli("check").returncode == 0
