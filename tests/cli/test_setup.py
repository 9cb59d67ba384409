"""``layerlimit setup`` and ``layerlimit config default|check``."""

from __future__ import annotations

import json
from pathlib import Path

from layerlimit.daemon.config import default_config
from tests.cli.conftest import Cli

CONTAINERD = 'version = 3\n# mine\n[proxy_plugins.stargz]\ntype = "snapshot"\naddress = "/run/stargz.sock"\n'


def test_containerd_is_told_once_and_the_old_file_kept(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONTAINERD)
    words = (
        "setup",
        "containerd",
        "--config",
        str(path),
        "--snapshotter",
        "small",
        "--address",
        "/run/x.sock",
    )
    seen = cli(*words, "--dry-run")
    assert path.read_text() == CONTAINERD
    assert b"+[proxy_plugins.small]\n" in seen.out
    assert seen.err == ""
    assert "nobody to ask" in cli(*words, code=2).err
    assert path.read_text() == CONTAINERD

    done = cli(*words, "--yes")
    assert done.out == seen.out
    assert "systemctl restart containerd" in done.err
    (backup,) = tmp_path.glob("config.toml.*.bak")
    assert str(backup) in done.err
    assert backup.read_text() == CONTAINERD
    assert f'root = "{cli.root}"' in path.read_text()

    again = cli(*words, "--yes")
    assert again.out == b""
    assert "nothing to change" in again.err
    assert b"layerlimit-diff" in cli(*words, "--yes", "--differ").out
    cli(*words, "--yes", "--remove")
    assert path.read_text() == CONTAINERD


def test_a_bad_command_line_is_refused_in_a_line(cli: Cli, tmp_path: Path) -> None:
    path = str(tmp_path / "config.toml")
    for words, says in (
        (("setup",), "missing command"),
        (("setup", "podman"), "no such command 'podman'"),
        (("setup", "containerd", "--config", path, "--snapshotter", "a b"), "the name 'a b'"),
        (("setup", "docker", "--config", path, "--snapshotter", "../a"), "the name '../a'"),
        (("setup", "containerd", "--config", path, "--address", "here"), "address = 'here'"),
        (("setup", "containerd", "--config", str(tmp_path)), "is a directory"),
    ):
        done = cli(*words, code=2)
        assert says in done.err
        assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_docker_is_told_as_json(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "docker" / "daemon.json"
    words = ("setup", "docker", "--config", str(path), "--snapshotter", "small", "--yes")
    told = cli.json(*words)
    assert (told["changed"], told["written"], told["backup"]) == (True, True, None)
    assert json.loads(path.read_text())["storage-driver"] == "small"
    path.write_text('{"storage-driver": "overlay2"}')
    assert cli("--format", "json", *words, code=4).error["code"] == "setup.conflict"
    assert path.read_text() == '{"storage-driver": "overlay2"}'


def test_the_default_configuration_can_be_checked(cli: Cli, tmp_path: Path) -> None:
    done = cli("config", "default")
    assert done.out.decode() == default_config()
    path = tmp_path / "config.toml"
    path.write_bytes(done.out)
    assert cli.json("config", "check", str(path)) == {"file": str(path), "snapshotters": ["layerlimit"]}
    path.write_text("rot = 1\n")
    assert "there is no key 'rot'" in cli("config", "check", str(path), code=2).err
    assert "--config" in cli("config", "check", str(tmp_path / "none"), code=3).err
    cli("config", "check", "a", "b", code=2)
    cli("config", "default", "b", code=2)
