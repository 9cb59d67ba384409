"""Containers in user namespaces: owners mapped by the mount, or by containerd in a copy of the image."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest

from tests.engines import image, inside
from tests.engines.conftest import Land
from tests.engines.daemons import BETWEEN, CURRENT, Containerd, Snapshotter
from tests.engines.inside import MIB

pytestmark = pytest.mark.lane("engines")

NAME = "layerlimit"
HOST = 100_000
MAPPED = ("--uidmap", f"0:{HOST}:65536", "--gidmap", f"0:{HOST}:65536")
OWNERS = "stat -c 'owner %u:%g' / /new /etc/passwd /old/kept /made"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((CURRENT, True), id="mounts"),
        pytest.param((CURRENT, False), id="copies"),
        *(pytest.param((release, True), id=release.name, marks=pytest.mark.long) for release in BETWEEN),
    ],
)
def engine(
    request: pytest.FixtureRequest, land: Land, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """A containerd that knows that mounts can map owners, and one that does not; an image above the limit."""
    with land() as ground:
        address = ground.directory / "ctd.sock"
        layerlimit = Snapshotter(ground, (f"{NAME}=8MiB",), ("--containerd", address)).start()
        release, mounts = request.param
        engine = Containerd(
            ground, release, (NAME,), layerlimit.socket, differ=True, remap_ids=mounts
        ).start()
        ground.open_to_mapped_users()
        layers = [*image.busybox_layers(), image.layer(("large", bytes(12 * MIB), 0o644))]
        archive = image.archive(tmp_path_factory.mktemp("image") / "large.tar", image.TEST_IMAGE, layers)
        engine.load(archive, NAME)
        yield engine


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(("--remap-labels",), id="labels"),
        pytest.param((), id="no labels", marks=pytest.mark.long),
    ],
)
def test_root_inside_is_limited(engine: Containerd, labels: tuple[str, ...]) -> None:
    engine.start_container("mapped", image.TEST_IMAGE, snapshotter=NAME, options=(*MAPPED, *labels))
    script = f"{inside.FREE} && echo made >/made && chmod 600 /old/kept && rm /etc/group && {OWNERS}"
    said = engine.sh("mapped", script).stdout
    assert said.count("owner 0:0\n") == 5
    assert inside.is_limit(inside.available(said), 8 * MIB), said
    said = engine.sh("mapped", inside.FILL).stderr
    assert "No space left on device" in said
    entries = changes(engine, "mapped")
    assert {"made", "old/kept", "etc/.wh.group"} <= set(entries)
    # Without labels nobody tells us, and containerd's own differ, that these are mapped.
    assert {entries[name].uid for name in ("made", "old/kept")} == ({0} if labels else {HOST})
    engine.remove_container("mapped")


def test_a_limited_layer_below_is_mapped_too(engine: Containerd, tmp_path: Path) -> None:
    """It is a mount of its own, which a mount with mapped owners has to reach."""
    layers = [*image.busybox_layers(), image.layer(("extra", b"not unpacked\n", 0o644))]
    name = "localhost/above:1"
    archive = image.archive(tmp_path / "above.tar", name, layers)
    below = image.archive(tmp_path / "below.tar", "localhost/below:1", layers[:-1])
    engine.load(below, NAME)
    engine.start_container("frozen", "localhost/below:1", snapshotter=NAME)
    engine.sh("frozen", "echo limited >/extra")
    engine.ctr("tasks", "kill", "--signal", "SIGKILL", "frozen")
    engine.ctr("tasks", "delete", "--force", "frozen")
    # Under the name by which containerd looks for the top layer of the other image.
    engine.ctr("snapshots", "--snapshotter", NAME, "commit", chain_id(layers), "frozen")
    engine.ctr("containers", "delete", "--keep-snapshot", "frozen")
    engine.load(archive, NAME)
    options = (*MAPPED, "--remap-labels")
    script = "cat /extra; stat -c 'owner %u:%g' /extra /new; echo more >>/extra && cat /extra"
    said = engine.run("above", name, "/bin/sh", "-c", script, snapshotter=NAME, options=options)
    assert said.stdout == "limited\nowner 0:0\nowner 0:0\nlimited\nmore\n", said.stderr
    engine.ctr("images", "rm", "--sync", name, "localhost/below:1")


def chain_id(layers: list[bytes]) -> str:
    """What containerd calls the snapshot of the last of these layers."""
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    return reduce(
        lambda chain, each: f"sha256:{hashlib.sha256(f'{chain} {each}'.encode()).hexdigest()}", digests
    )


def changes(engine: Containerd, key: str) -> dict[str, tarfile.TarInfo]:
    tar = engine.island.directory / "changes.tar.gz"
    ctr = f"{engine.release.programs}/ctr --address {engine.address} --namespace {engine.island.cgroup}"
    engine.island.run("sh", "-c", f"{ctr} snapshots --snapshotter {NAME} diff {key} >{tar}")
    with tarfile.open(tar) as opened:
        return {entry.name.strip("/"): entry for entry in opened}
