"""``layerlimit import``: a base from each kind of source, whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.archive.images import Layout, docker_archive, layer_tar, sha256
from tests.cli.conftest import Cli

LOWER = layer_tar({"etc/": b"", "etc/kept": b"kept", "etc/gone": b"gone", "var/": b"", "var/old": b"old"})
UPPER = layer_tar({"etc/": b"", "etc/.wh.gone": b"", "etc/new": b"new", "var/": b"", "var/.wh..wh..opq": b""})
TOGETHER = ["A /etc", "A /etc/kept", "A /etc/new", "A /var"]


def test_a_tar_from_a_file_or_stdin(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(LOWER))
    found = cli.json("import", "a", str(tmp_path / "root.tar.gz"))
    assert found == {
        "name": "a",
        "bytes": 11,
        "entries": 5,
        "layers": [{"diff_id": sha256(LOWER), "bytes": 11, "entries": 5}],
    }
    cli("import", "b", "-", stdin=LOWER)
    assert cli("changes", "a").lines == cli("changes", "b").lines
    assert [(entry["kind"], entry["parent"]) for entry in cli.json("ls")] == [("committed", None)] * 2


def test_deletions_in_a_tar_are_carried_out(cli: Cli) -> None:
    cli("import", "a", "-", stdin=layer_tar({"x": b"x", ".wh.x": b"", "y": b"y"}))
    assert cli("changes", "a").lines == ["A /y"]


def test_an_oci_layout(cli: Cli, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "lay:out")
    layout.tag(layout.manifest([LOWER, UPPER], packed=False), "v1:x")
    layout.tag(layout.manifest([LOWER]), "old")
    done = cli("import", "a", f"oci:{layout.path}:v1:x", "--format", "json")
    assert json.loads(done.out)["layers"][1]["diff_id"] == sha256(UPPER)
    assert "layer 2 of 2" in done.err
    assert cli("changes", "a").lines == TOGETHER
    assert "v1:x" in cli("import", "b", f"oci:{layout.path}", code=2).err
    cli("import", "b", f"oci:{layout.path}:nosuch", code=3)
    cli("import", "b", f"oci:{tmp_path}/nosuch", code=3)
    cli("import", "b", "oci:", code=2)
    assert cli("ls", "-q").lines == ["a"]


def test_a_docker_archive(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    file.write_bytes(docker_archive([LOWER, UPPER], tags=["web:1"]))
    cli("import", "a", f"docker-archive:{file}")
    cli("import", "b", f"docker-archive:{file}:web:1")
    cli("import", "c", "docker-archive:-", stdin=gzip.compress(file.read_bytes()))
    for name in "abc":
        assert cli("changes", name).lines == TOGETHER
    cli("import", "d", f"docker-archive:{file}:other", code=3)


def test_killed_in_the_middle_it_leaves_nothing(cli: Cli) -> None:
    tar = layer_tar({"first": bytes(1 << 20), "second": bytes(8 << 20)})
    with subprocess.Popen(
        cli.command("import", "a", "-"), stdin=subprocess.PIPE, env=cli.environment
    ) as process:
        assert process.stdin is not None
        process.stdin.write(tar[: 4 << 20])
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(cli.root.glob("**/first")):
            assert time.monotonic() < deadline, "nothing is extracted"
            time.sleep(0.01)
        assert cli("ls", "-q").lines == []
        process.kill()
    assert cli("ls", "-q").lines == []
    assert not list(cli.root.glob("**/first"))
    assert os.listdir(cli.root / "layers") == os.listdir(cli.root / "diff") == []
    cli("import", "a", "-", stdin=tar)
    assert cli("ls", "-q").lines == ["a"]


def _wrong_second_layer(layout: Layout) -> None:
    layout.blob(UPPER).write_bytes(UPPER[:-1] + b"x")


def _second_layer_is_no_tar(layout: Layout) -> None:
    layout.manifests.clear()
    layout.tag(layout.manifest([LOWER, b"junk" * 1000]))


def _wrong_diff_id(layout: Layout) -> None:
    layout.manifests.clear()
    rootfs = {"type": "layers", "diff_ids": [sha256(LOWER), sha256(b"other")]}
    layout.tag(layout.manifest([LOWER, UPPER], rootfs=rootfs))


@pytest.mark.parametrize("harm", [_wrong_second_layer, _second_layer_is_no_tar, _wrong_diff_id])
def test_all_or_nothing(cli: Cli, tmp_path: Path, harm: object) -> None:
    layout = Layout(tmp_path / "layout")
    layout.tag(layout.manifest([LOWER, UPPER]))
    assert callable(harm)
    harm(layout)
    cli("create", "other")
    assert cli("import", "a", f"oci:{layout.path}", code=2).out == b""
    assert cli("ls", "-q").lines == ["other"]
    for place in ("diff", "trash", "work", "containers_quota"):
        assert [name for name in os.listdir(cli.root / place) if cli.id("other") not in name] == []


def test_a_name_that_is_taken_is_left_alone(cli: Cli) -> None:
    cli("import", "a", "-", stdin=LOWER)
    before = cli("changes", "a").out
    assert cli("--format", "json", "import", "a", "-", stdin=UPPER, code=4).error["code"] == "layer.exists"
    assert cli("changes", "a").out == before


def test_what_is_no_source(cli: Cli, tmp_path: Path) -> None:
    assert f"oci:{tmp_path}" in cli("import", "a", str(tmp_path), code=2).err
    cli("import", "a", str(tmp_path / "missing"), code=3)
    cli("import", "a", "-", stdin=b"junk" * 1000, code=2)
    assert cli("ls", "-q").lines == []
