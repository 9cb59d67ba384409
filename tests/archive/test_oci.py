"""OCI layouts: which image is meant, and that nothing wrong in one is taken."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layerlimit.archive.image import Image
from layerlimit.archive.oci import OciImage
from layerlimit.errors import Error, InvalidArgument, NotFound, NotSupported
from tests.archive.images import MACHINE, OCI_INDEX, Layout, layer_tar, sha256

ONE = layer_tar({"etc/": b"", "etc/one": b"1"})
TWO = layer_tar({"etc/": b"", "etc/two": b"22"})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def read(image: Image) -> list[bytes]:
    found = []
    for layer in image.layers:
        with image.open(layer) as stream:
            found.append(stream.read() or b"")
    return found


def test_the_only_image(layout: Layout) -> None:
    layout.tag(layout.manifest([ONE, TWO]))
    with OciImage(layout.path) as image:
        assert read(image) == [ONE, TWO]
        assert [layer.diff_id for layer in image.layers] == [sha256(ONE), sha256(TWO)]


def test_an_image_by_its_tag(layout: Layout) -> None:
    layout.tag(layout.manifest([ONE]), "one")
    layout.tag(layout.manifest([TWO]), "registry.example/two:2")
    for tag, content in (("one", ONE), ("registry.example/two:2", TWO)):
        with OciImage(layout.path, tag) as image:
            assert read(image) == [content]
    with pytest.raises(InvalidArgument, match="holds 2 images") as caught:
        OciImage(layout.path)
    assert "one, registry.example/two:2" in caught.value.hint
    with pytest.raises(NotFound, match="no image 'three'"):
        OciImage(layout.path, "three")


def test_the_same_image_under_two_tags_is_one(layout: Layout) -> None:
    descriptor = layout.manifest([ONE])
    layout.tag(descriptor, "a")
    layout.tag(descriptor, "b")
    with OciImage(layout.path) as image:
        assert read(image) == [ONE]


def test_the_platform_of_this_machine(layout: Layout) -> None:
    mine = {**layout.manifest([ONE]), "platform": {"os": "linux", "architecture": MACHINE}}
    other = {**layout.manifest([TWO]), "platform": {"os": "linux", "architecture": "mips64le"}}
    attestation = {**layout.manifest([]), "platform": {"os": "unknown", "architecture": "unknown"}}
    index = json.dumps({"schemaVersion": 2, "manifests": [other, attestation, mine]}).encode()
    layout.tag(layout.add(OCI_INDEX, index), "all")
    with OciImage(layout.path, "all") as image:
        assert read(image) == [ONE]
    layout.manifests.clear()
    layout.tag(other)
    with pytest.raises(NotSupported, match=f"no image for linux/{MACHINE}"):
        OciImage(layout.path)


def test_no_layout(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no OCI image layout"):
        OciImage(tmp_path)
    with pytest.raises(NotFound, match="No such file"):
        OciImage(tmp_path / "nothing")


@pytest.mark.lane("umoci")
def test_what_umoci_wrote(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(ONE)
    where = f"{tmp_path}/layout:v1"
    for command in (
        ["umoci", "init", "--layout", f"{tmp_path}/layout"],
        ["umoci", "new", "--image", where],
        ["umoci", "raw", "add-layer", "--image", where, f"{tmp_path}/layer.tar"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    with OciImage(tmp_path / "layout", "v1") as image:
        (packed,) = read(image)
        assert packed[:2] == b"\x1f\x8b"
        assert [layer.diff_id for layer in image.layers] == [sha256(ONE)]


def _change_layer(layout: Layout) -> None:
    layout.blob(ONE).write_bytes(ONE[:-1] + b"x")


def _cut_layer(layout: Layout) -> None:
    layout.blob(ONE).write_bytes(ONE[:-1])


@pytest.mark.parametrize("harm", [_change_layer, _cut_layer])
def test_a_damaged_layer_is_noticed_while_it_is_read(layout: Layout, harm: Callable[[Layout], None]) -> None:
    layout.tag(layout.manifest([ONE]))
    harm(layout)
    with OciImage(layout.path) as image, pytest.raises(InvalidArgument) as caught:
        read(image)
    assert caught.value.code == "image.digest"


def _link_out(layout: Layout) -> None:
    secret = layout.path.parent / "secret"
    secret.write_bytes(ONE)
    layout.blob(ONE).unlink()
    layout.blob(ONE).symlink_to(secret)


def _link_up(layout: Layout) -> None:
    (layout.path.parent / "secret").write_bytes(ONE)
    layout.blob(ONE).unlink()
    layout.blob(ONE).symlink_to("../../../secret")


def _fifo(layout: Layout) -> None:
    layout.blob(ONE).unlink()
    os.mkfifo(layout.blob(ONE))


def _missing(layout: Layout) -> None:
    layout.blob(ONE).unlink()


@pytest.mark.parametrize("harm", [_link_out, _link_up, _fifo, _missing])
def test_a_layer_is_a_file_of_the_layout(layout: Layout, harm: Callable[[Layout], None]) -> None:
    layout.tag(layout.manifest([ONE]))
    harm(layout)
    with OciImage(layout.path) as image, pytest.raises(Error, match="layer sha256:"):
        read(image)


def test_a_link_inside_the_layout_is_followed(layout: Layout) -> None:
    layout.tag(layout.manifest([ONE]))
    os.rename(layout.blob(ONE), layout.path / "shared")
    layout.blob(ONE).symlink_to("../../shared")
    with OciImage(layout.path) as image:
        assert read(image) == [ONE]


def test_documents_are_proven_too(layout: Layout) -> None:
    descriptor = layout.manifest([ONE])
    layout.tag(descriptor)
    path = layout.path / "blobs" / str(descriptor["digest"]).replace(":", "/")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InvalidArgument, match=r"manifest sha256:\w+ is damaged"):
        OciImage(layout.path)


def test_a_digest_is_no_path(layout: Layout) -> None:
    layout.tag({**layout.manifest([ONE]), "digest": "sha256:../../../../../../etc/passwd"})
    with pytest.raises(InvalidArgument, match="is not a sha256 or sha512 digest"):
        OciImage(layout.path)


def test_documents_are_bounded(layout: Layout) -> None:
    with open(layout.path / "index.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InvalidArgument, match="larger than"):
        OciImage(layout.path)


def test_indexes_do_not_nest_for_ever(layout: Layout) -> None:
    descriptor = layout.manifest([ONE])
    for _ in range(10):
        index = json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode()
        descriptor = layout.add(OCI_INDEX, index)
    layout.tag(descriptor)
    with pytest.raises(InvalidArgument, match="nested"):
        OciImage(layout.path)


@pytest.mark.parametrize(
    "media_type", ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "text/plain", ""]
)
def test_only_layer_tars_are_layers(layout: Layout, media_type: str) -> None:
    layout.tag(layout.manifest([ONE], media_type=media_type))
    with pytest.raises(NotSupported, match="has the type"):
        OciImage(layout.path)


def test_another_version_of_the_layout(layout: Layout) -> None:
    (layout.path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(NotSupported, match=r"2\.0\.0"):
        OciImage(layout.path)


def test_no_descriptor_stays_open(layout: Layout) -> None:
    layout.tag(layout.manifest([ONE]))
    before = len(os.listdir("/proc/self/fd"))
    with OciImage(layout.path) as image:
        read(image)
    with pytest.raises(NotFound):
        OciImage(layout.path, "nothing")
    assert len(os.listdir("/proc/self/fd")) == before
