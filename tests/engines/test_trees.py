"""Our differ against containerd's own: the same image, and the same changes, give the same tree."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.archive import trees
from tests.engines import image
from tests.engines.conftest import Land
from tests.engines.daemons import CURRENT, Containerd, Snapshotter
from tests.engines.island import awaited

pytestmark = pytest.mark.lane("engines")

OURS, THEIRS = "layerlimit", "overlayfs"
IMPLIED = (b"rich", b"implied", b"implied/deep")
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)  # vfs_cap_data, revision 2: net_bind_service


@pytest.fixture(scope="module")
def engine(land: Land) -> Iterator[Containerd]:
    """What unpacks into ``OURS`` is our differ, into ``THEIRS`` containerd's walking one; so with diffs."""
    with land() as ground:
        layerlimit = Snapshotter(ground, (OURS,), ("--containerd", ground.directory / "ctd.sock")).start()
        yield Containerd(ground, CURRENT, (OURS,), layerlimit.socket, differ=True).start()


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type = kind
    content = fields.pop("content", b"")
    made.size = len(content)
    made.mtime = 1_500_000_000
    for key, value in fields.items():
        setattr(made, key, value)
    return made, content


def packed(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for made, content in entries:
            tar.addfile(made, io.BytesIO(content))
    return buffer.getvalue()


def rich_layers() -> list[bytes]:
    """Of every kind of entry one, and over it a layer that deletes, hides and replaces some."""
    capable = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
    below = packed(
        entry("rich", tarfile.DIRTYPE, mode=0o2750, uid=7, gid=8),
        entry("rich/file", content=b"file\n", mode=0o4755, uid=1000, gid=100, mtime=1_400_000_000.25),
        entry("rich/marked", content=b"marked\n", pax_headers={"SCHILY.xattr.user.colour": "red"}),
        entry("rich/capable", content=b"capable\n", mode=0o755, pax_headers=capable),
        entry("rich/hard", tarfile.LNKTYPE, linkname="rich/file"),
        entry("rich/soft", tarfile.SYMTYPE, linkname="../etc/passwd", uid=3_000_000_000, gid=4),
        entry("rich/fifo", tarfile.FIFOTYPE, mode=0o622),
        entry("rich/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        entry("implied/deep/file", content=b"deep\n", uid=5),
        entry("gone", tarfile.DIRTYPE),
        entry("gone/below", content=b"below\n"),
        entry("opaque", tarfile.DIRTYPE, mode=0o700),
        entry("opaque/hidden", content=b"hidden\n"),
        entry("swapped", content=b"a file\n"),
    )
    above = packed(
        entry(".wh.gone"),
        entry("opaque", tarfile.DIRTYPE, mode=0o711, uid=9, mtime=1_600_000_000),
        entry("opaque/.wh..wh..opq"),
        entry("opaque/seen", content=b"seen\n"),
        entry("rich/.wh.fifo"),
        entry("implied/deep/more", content=b"more\n"),
        entry("swapped", tarfile.DIRTYPE, mode=0o1777),
        entry("swapped/inside", content=b"inside\n"),
    )
    return [*image.busybox_layers(), below, above]


def mounted(engine: Containerd, name: str, snapshotter: str) -> dict[bytes, trees.Seen]:
    """The tree of an image."""
    place = engine.island.directory / f"seen-{os.urandom(4).hex()}"
    place.mkdir()
    engine.ctr("images", "mount", "--snapshotter", snapshotter, name, place)
    try:
        return trees.scan(Path(f"/proc/{engine.island.init}/root{place}"), seconds=True)
    finally:
        engine.ctr("images", "unmount", "--rm", "--snapshotter", snapshotter, place)


def load(engine: Containerd, archive: Path, snapshotter: str, *options: str) -> None:
    engine.ctr("images", "import", *options, "--snapshotter", snapshotter, archive)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_an_image_has_the_same_tree(
    engine: Containerd, tmp_path: Path, compression: image.Compression
) -> None:
    name = f"localhost/{compression}:1"
    archive = image.archive(tmp_path / "rich.tar", name, rich_layers(), compression=compression)
    for snapshotter in (OURS, THEIRS):
        load(engine, archive, snapshotter)
    ours, theirs = (mounted(engine, name, snapshotter) for snapshotter in (OURS, THEIRS))
    for path in IMPLIED:  # when they changed, no tar says
        for tree in (ours, theirs):
            tree[path] = replace(tree[path], mtime=0)
    assert ours == theirs
    assert ours[b"rich/file"].links == (b"rich/file", b"rich/hard")
    assert dict(ours[b"rich/capable"].xattrs) == {b"security.capability": CAPABILITY}
    assert dict(ours[b"rich/marked"].xattrs) == {b"user.colour": b"red"}
    assert {b"rich/null", b"opaque/seen", b"swapped/inside"} <= set(ours)
    assert not {b"gone", b"opaque/hidden", b"rich/fifo"} & set(ours)
    engine.ctr("images", "rm", "--sync", name)


def test_a_hostile_layer_stays_inside(engine: Containerd, tmp_path: Path) -> None:
    """Through symbolic links it stays in the root, as with containerd."""
    name = "localhost/hostile:1"
    hostile = packed(
        entry("out", tarfile.SYMTYPE, linkname="../../../.."),
        entry("out/hostile", content=b"inside\n"),
        entry("old", tarfile.SYMTYPE, linkname="/"),
        entry("old/hidden/.wh.above"),
    )
    archive = image.archive(tmp_path / "hostile.tar", name, [*image.busybox_layers(), hostile])
    for snapshotter in (OURS, THEIRS):
        load(engine, archive, snapshotter)
    ours, theirs = (mounted(engine, name, snapshotter) for snapshotter in (OURS, THEIRS))
    assert ours.keys() == theirs.keys()
    assert b"hostile" in ours
    assert b"hidden/above" not in ours
    engine.ctr("images", "rm", "--sync", name)


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (entry("../../../../hostile", content=b"inside\n"), "leads out of the layer"),
        (entry("hostile", tarfile.LNKTYPE, linkname="etc/shadow"), "which is not in the layer"),
        (entry(".wh.."), "names no entry"),
    ],
    ids=["upwards", "hard link", "deletion"],
)
def test_a_hostile_layer_is_refused(
    engine: Containerd, tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes], says: str
) -> None:
    name = "localhost/hostile:1"
    archive = image.archive(tmp_path / "hostile.tar", name, [*image.busybox_layers(), packed(hostile)])
    done = engine.ctr("images", "import", "--snapshotter", OURS, archive, check=False)
    assert done.returncode != 0
    assert says in done.stderr
    engine.ctr("images", "rm", "--sync", name, check=False)
    awaited("what was unpacked of it to go", lambda: not engine.snapshots(OURS))


CHANGES = """
set -e
rm -r /implied; rm /rich/soft; rm -r /swapped; echo again >/swapped
rm -r /opaque; mkdir -m 750 /opaque; echo new >/opaque/new
chmod 600 /rich/capable; chown 12:34 /rich/null
cp /etc/passwd /rich/soft; busybox ln /rich/file /rich/third; busybox mkfifo /rich/pipe
touch -d @1300000000 /new; mv /hidden /moved
"""


@pytest.mark.parametrize(("ran", "other"), [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours", "theirs"])
def test_changes_are_the_same_elsewhere(engine: Containerd, tmp_path: Path, ran: str, other: str) -> None:
    """A container's layer, exported by the differ of one and unpacked by that of the other."""
    name = f"localhost/base-{ran}:1"
    load(engine, image.archive(tmp_path / "base.tar", name, rich_layers()), ran)
    engine.start_container("changed", name, snapshotter=ran)
    engine.sh("changed", CHANGES)
    root = next(
        Path(f"/proc/{engine.island.init}/root{engine.island.directory}").glob("state/*/*/changed/rootfs")
    )
    if ran == OURS:
        os.setxattr(root / "new", "user.colour", b"blue")  # containerd's differ leaves such out
    wanted = trees.scan(root, seconds=True)
    tar = tmp_path / "changes.tar.gz"
    ctr = f"{engine.release.programs}/ctr --address {engine.address} --namespace {engine.island.cgroup}"
    engine.island.run("sh", "-c", f"{ctr} snapshots --snapshotter {ran} diff changed >{tar}")
    layers = [*rich_layers(), gzip.decompress(tar.read_bytes())]
    committed = f"localhost/committed-{ran}:1"
    load(engine, image.archive(tmp_path / "committed.tar", committed, layers), other)
    found = mounted(engine, committed, other)
    assert found == wanted
    engine.remove_container("changed")
    engine.ctr("images", "rm", "--sync", name, committed)
