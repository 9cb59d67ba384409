"""``layerlimit doctor`` says what is so here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import lanes
from tests.cli.conftest import Cli

MIB = 1 << 20


@pytest.mark.lane("overlay", "loop")
def test_the_limit_is_proven(cli: Cli) -> None:
    cli.root.mkdir()
    found = cli.json("doctor")
    unions = {entry["name"]: entry for entry in found["unions"]}
    assert unions["overlay"] == {"name": "overlay", "works": True, "why": ""}
    assert set(unions) == {"overlay", "aufs"}
    (image,) = found["limiters"]
    assert (image["name"], image["union"], image["works"], image["why"]) == ("image", "overlay", True, "")
    proof = image["proof"]
    assert proof["asked_bytes"] <= proof["written_bytes"] <= proof["asked_bytes"] * 101 // 100
    assert proof["shown_bytes"] >= proof["asked_bytes"]
    assert proof["answer"] == "ENOSPC"
    assert proof["grows_unmounted"]
    assert "CAP_SYS_ADMIN" in image["lifted_by"]
    assert list(cli.root.iterdir()) == []


def test_what_it_knows_of_the_machine(cli: Cli, tmp_path: Path) -> None:
    found = cli.json("doctor")
    assert found["kernel"] == os.uname().release
    assert found["root"]["path"] == str(cli.root)
    assert not found["root"]["exists"]
    assert not cli.root.exists()
    assert found["e2fsprogs"]["mke2fs"].startswith("1.")
    capabilities = lanes.capabilities()
    for name, number in (("CAP_SYS_ADMIN", 21), ("CAP_SYS_RESOURCE", 24)):
        assert found["capabilities"][name] == bool(capabilities >> number & 1)
    text = cli("doctor").out.decode()
    assert "union overlay:      works\n" in text
    assert "then ENOSPC" in text


def test_without_the_capability_to_grow_mounted_layers(cli: Cli) -> None:
    command = ["setpriv", "--bounding-set=-sys_resource", *cli.command("doctor", "--format", "json")]
    done = subprocess.run(command, env=cli.environment, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert not found["capabilities"]["CAP_SYS_RESOURCE"]
    proof = found["limiters"][0]["proof"]
    assert not proof["grows_mounted"]
    assert proof["grows_unmounted"]
    assert "cannot grow while it is mounted" in proof["why_not_mounted"]


@pytest.mark.lane("resource")
def test_with_it(cli: Cli) -> None:
    assert cli.json("doctor")["limiters"][0]["proof"]["grows_mounted"]


def test_where_nothing_works(cli: Cli) -> None:
    command = ["setpriv", "--bounding-set=-sys_admin", *cli.command("doctor", "--format", "json")]
    done = subprocess.run(command, env=cli.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done
    found = json.loads(done.stdout)
    assert [entry["works"] for entry in found["unions"]] == [False, False]
    assert all(entry["why"] for entry in found["unions"])
    (image,) = found["limiters"]
    assert (image["works"], image["why"], image["proof"]) == (False, "no union works", None)
    assert not cli.root.exists()


def test_a_disk_that_is_full(cli: Cli, tmp_path: Path) -> None:
    """The reason is said; there is no traceback, and the rest of the report is there."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        done = cli("--root", str(small / "root"), "doctor", "--format", "json", code=7)
        (image,) = json.loads(done.out)["limiters"]
        assert not image["works"]
        assert image["why"]
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
