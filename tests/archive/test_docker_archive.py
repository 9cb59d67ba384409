"""What ``docker save`` writes, old and new, plain and packed, whole and not."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from layerlimit.archive.docker_archive import DockerArchive
from layerlimit.errors import InvalidArgument, NotFound
from tests.archive.images import configuration, docker_archive, layer_tar, sha256
from tests.archive.test_oci import read

ONE = layer_tar({"etc/": b"", "etc/one": b"1"})
TWO = layer_tar({"etc/": b"", "etc/two": b"22"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "image.tar"


@pytest.mark.parametrize(
    "names", [(), ("blobs/sha256/aa", "blobs/sha256/bb"), ("./a/layer.tar", "./b/layer.tar")]
)
def test_layers_in_order(file: Path, names: tuple[str, ...]) -> None:
    file.write_bytes(docker_archive([ONE, TWO], names=names))
    with DockerArchive(file) as image:
        assert read(image) == [ONE, TWO]
        assert [layer.diff_id for layer in image.layers] == [sha256(ONE), sha256(TWO)]


def test_the_order_is_that_of_the_manifest_not_of_the_file(file: Path) -> None:
    manifest = [{"Config": "config.json", "RepoTags": None, "Layers": ["b", "a"]}]
    file.write_bytes(
        docker_archive([ONE, TWO], names=("a", "b"), manifest=manifest, config=configuration([TWO, ONE]))
    )
    with DockerArchive(file) as image:
        assert read(image) == [TWO, ONE]


def test_a_layer_that_is_a_link_to_another(file: Path) -> None:
    config = configuration([ONE, ONE])
    file.write_bytes(
        docker_archive([ONE], names=["x/layer.tar"], links={"y/layer.tar": "../x/layer.tar"}, config=config)
    )
    with DockerArchive(file) as image:
        assert read(image) == [ONE, ONE]


def test_packed_archives_and_packed_layers(file: Path) -> None:
    packed = gzip.compress(ONE)
    file.write_bytes(gzip.compress(docker_archive([packed], config=configuration([ONE]))))
    with DockerArchive(file) as image:
        assert read(image) == [packed]


def test_a_pipe(file: Path) -> None:
    os.mkfifo(file)
    plain = file.with_name("plain.tar")
    plain.write_bytes(docker_archive([ONE]))
    with subprocess.Popen(["cp", plain, file]), DockerArchive(file) as image:
        assert read(image) == [ONE]


def test_one_of_several_images(file: Path) -> None:
    manifest = [
        {"Config": "config.json", "RepoTags": [tag], "Layers": ["a"]} for tag in ("web:1", "host:5000/db:2")
    ]
    file.write_bytes(docker_archive([ONE], names=["a"], manifest=manifest))
    with DockerArchive(file, "host:5000/db:2") as image:
        assert read(image) == [ONE]
    with pytest.raises(InvalidArgument, match="holds 2 images") as caught:
        DockerArchive(file)
    assert "host:5000/db:2, web:1" in caught.value.hint
    with pytest.raises(NotFound, match="no image 'x'"):
        DockerArchive(file, "x")


def _tar(**files: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "no file 'manifest.json'"),
        (b"junk " * 1000, "no tar header"),
        (_tar(x=b"1"), "no file 'manifest.json'"),
        (_tar(**{"manifest.json": b"{"}), "manifest.json is not valid"),
        (_tar(**{"manifest.json": b" " * (5 << 20)}), "larger than"),
        (docker_archive([ONE], manifest=[{"Config": "/etc/passwd", "Layers": []}]), "no file '/etc/passwd'"),
        (
            docker_archive([ONE], manifest=[{"Config": "config.json", "Layers": ["../../x"]}]),
            "no file '../../x'",
        ),
        (docker_archive([ONE], config=configuration([ONE, TWO])), "2 diff IDs for 1 layers"),
        (docker_archive([], links={"a": "b", "b": "a"}, config=configuration([ONE, ONE])), "no file 'a'"),
        (docker_archive([ONE])[:3000], "archive ends"),
    ],
)
def test_what_is_no_archive(file: Path, raw: bytes, why: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file.write_bytes(raw)
    with pytest.raises(InvalidArgument, match=why):
        DockerArchive(file)
    assert len(os.listdir("/proc/self/fd")) == before


def test_streams_without_a_descriptor(file: Path) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(3 if size == 8 else size)

    for stream in (io.BytesIO(docker_archive([ONE])), Slow(gzip.compress(docker_archive([ONE])))):
        with DockerArchive(stream) as image:
            assert read(image) == [ONE]
        assert not stream.closed


def test_no_file(file: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        DockerArchive(file)
