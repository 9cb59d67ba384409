"""Commands that make, show, mount, measure, grow and remove layers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

MIB = 1 << 20


def test_create_says_what_it_made(cli: Cli) -> None:
    cli("create", "new")
    cli("commit", "new", "base")
    done = cli(
        *("create", "web", "-p", "base", "-l", "16MiB", "--inodes", "100", "--ephemeral"),
        *("--label", "team=a=b", "--format", "json"),
    )
    assert done.err == "layerlimit: created web over base, limit 16 MiB\n"
    assert cli.json("ls") == [
        {
            "name": "base",
            "kind": "committed",
            "parent": None,
            "limit": None,
            "mounted": False,
            "labels": {},
        },
        {
            "name": "web",
            "kind": "active",
            "parent": "base",
            "limit": {"bytes": 16 * MIB, "inodes": 100, "ephemeral": True, "reserve": False},
            "mounted": False,
            "labels": {"team": "a=b"},
        },
    ]
    assert cli("create", "web", code=4).out == b""
    assert "nosuch" in cli("create", "new", "--parent", "nosuch", code=3).err
    assert cli("ls", "-q").lines == ["base", "web"]


def test_reserve_takes_the_space_now(cli: Cli) -> None:
    cli("create", "web", "--limit", "16m", "--reserve")
    assert cli.json("inspect", "web")[0]["limiter"]["host_bytes"] >= 16 * MIB


def test_tables(cli: Cli) -> None:
    cli("create", "new")
    cli("commit", "new", "base")
    for name, parent in (("new", "base"), ("b", "base"), ("a1", "a"), ("a2", "a")):
        cli("create", name, "--parent", parent, "--limit", "8m")
        if name == "new":
            cli("commit", name, "a")
    assert cli("ls").lines[:2] == [
        "NAME  KIND       PARENT  LIMIT  MOUNTED",
        "a     committed  base    8 MiB  no",
    ]
    assert cli("tree").lines == [
        "base",
        "├─ a  8 MiB",
        "│  ├─ a1  8 MiB",
        "│  └─ a2  8 MiB",
        "└─ b  8 MiB",
    ]
    tree = [(entry["name"], entry["parent"], entry["depth"]) for entry in cli.json("tree")]
    assert tree == [("base", None, 0), ("a", "base", 1), ("a1", "a", 2), ("a2", "a", 2), ("b", "base", 1)]
    assert len(cli("ls", "--format", "jsonl").lines) == 5


def test_mount_and_umount(cli: Cli, web: str) -> None:
    path = cli.mnt(web)
    assert cli("mount", web).lines == [str(path)]
    assert cli.json("mount", web) == {"name": "web", "path": str(path), "read_only": False}
    (path / "new").write_text("x")
    assert cli.json("inspect", web)[0]["holds"] == 2
    assert "still mounted" in cli("umount", web).err
    assert cli.json("umount", web) == {"name": "web", "mounted": False, "holds": 0, "processes": 0}
    assert "is not mounted" in cli("umount", web).err
    assert not (path / "new").exists()


def test_a_view_cannot_be_written(cli: Cli, web: str) -> None:
    path = Path(cli("mount", web, "--read-only").lines[0])
    assert (path / "etc/issue").read_text() == "busybox\n"
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").touch()
    cli("umount", web, "--read-only")
    assert not path.is_mount()


def test_umount_of_a_layer_in_use_is_busy(cli: Cli, web: str) -> None:
    path = Path(cli("mount", web).lines[0])
    fd = os.open(path / "etc/issue", os.O_RDONLY)
    try:
        assert f"{path}" in cli("umount", web, code=5).err
    finally:
        os.close(fd)
    cli("umount", web)


def test_inspect(cli: Cli, web: str) -> None:
    cli("commit", web, "limited")
    cli("create", web, "--parent", "limited", "--limit", "32m")
    cli("view", "child", "limited")
    (found,) = cli.json("inspect", "limited")
    assert (found["chain"], found["children"], found["kind"]) == (["base"], ["child", web], "committed")
    (found,) = cli.json("inspect", web)
    assert (found["chain"], found["children"]) == (["limited", "base"], [])
    assert found["limit"]["bytes"] == 32 * MIB
    assert found["limiter"]["name"] == "image"
    assert os.stat(found["limiter"]["file"]).st_size == found["limiter"]["file_bytes"]
    assert "CAP_SYS_ADMIN" in found["limiter"]["lifted_by"]
    assert found["usage"]["bytes"] < MIB
    text = cli("inspect", web, "base").out.decode()
    assert "Limit:            32 MiB (33554432 bytes)" in text
    assert "\n\nName:            base\nKind:            committed\n" in text
    assert f"Id of its files:  {cli.id(web)}\n" in text
    assert [entry["name"] for entry in cli.json("inspect", "base", web)] == ["base", web]


def test_df(cli: Cli, web: str) -> None:
    cli("create", "few", "-p", "base", "-l", "8m", "--inodes", "64")
    path = Path(cli("mount", web).lines[0])
    (path / "half").write_bytes(bytes(16 * MIB))
    os.sync()
    by_name = {entry["name"]: entry for entry in cli.json("df")}
    assert set(by_name) == {"few", "web"}  # the base has no limit
    used = by_name["web"]["used"]["bytes"]
    assert 16 * MIB <= used < 17 * MIB
    assert by_name["web"]["available"]["bytes"] == 32 * MIB - used
    header, row = cli("df", web).lines
    assert header.split() == ["NAME", "LIMIT", "USED", "AVAIL", "USE%", "INODES", "IUSED", "IUSE%"]
    assert f"{-(-100 * used // (32 * MIB))}%" in row.split()
    assert cli("df", "few").lines[1].split()[-3] == "64"
    (base,) = cli.json("df", "base")
    assert base["limit"] is None
    assert base["used"]["bytes"] > MIB
    cli("umount", web)


def test_resize_and_what_it_refuses(cli: Cli, web: str) -> None:
    assert cli.json("resize", web, "48MiB")["limit"]["bytes"] == 48 * MIB
    assert cli.json("resize", web, "16m")["limit"]["bytes"] == 16 * MIB
    assert cli("resize", "base", "1g", "--format", "json", code=2).error["code"] == "kind.not_active"
    cli("create", "free", "--parent", "base")
    assert cli.json("resize", "free", "1g")["limit"]["bytes"] == 1024 * MIB
    assert cli.json("resize", "free", "none")["limit"] is None
    assert cli("resize", "free", "none", "--inodes", "5", "--format", "json", code=2).error["code"]
    cli("mount", web)
    assert cli("resize", web, "8m", "--format", "json", code=5).error["code"] == "layer.held"
    cli("umount", web)
    cli("resize", web, "200m", "--inodes", "3000")
    done = cli("run", web, "--", "df", "-k", "/")
    assert int(done.lines[1].split()[3]) >= 200 * 1024


def test_resize_of_a_mounted_layer_without_the_capability(cli: Cli, web: str) -> None:
    path = cli("mount", web).lines[0]
    command = ["setpriv", "--bounding-set=-sys_resource", *cli.command("--format=json", "resize", web, "64m")]
    done = subprocess.run(command, env=cli.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done
    assert '"resize.online"' in done.stderr
    assert os.statvfs(path).f_bavail * 4096 < 33 * MIB
    cli("umount", web)
    cli("resize", web, "64m")
    cli("mount", web)
    assert os.statvfs(path).f_bavail * 4096 >= 64 * MIB
    cli("umount", web)


@pytest.mark.lane("resource")
def test_resize_of_a_mounted_layer(cli: Cli, web: str) -> None:
    path = cli("mount", web).lines[0]
    cli("resize", web, "64m")
    assert os.statvfs(path).f_bavail * 4096 >= 64 * MIB
    cli("umount", web)


def test_rm(cli: Cli, web: str) -> None:
    cli("commit", web, "mid")
    cli("create", "child", "--parent", "mid", "--limit", "8m")
    assert cli("rm", "base", "--format", "json", code=5).error["code"] == "layer.has_children"
    cli("mount", "child")
    assert cli("rm", "child", "--format", "json", code=5).error["code"] == "layer.held"
    assert cli.json("rm", "--force", "base", "child", "mid", "nosuch") == {
        "removed": ["child", "mid", "base"]
    }
    assert cli("ls", "-q").lines == []
    assert cli("rm", "nosuch", code=3).err.startswith("layerlimit: there is no layer 'nosuch'")
    cli("rm", "-f", "nosuch")


def test_rm_removes_what_it_can(cli: Cli) -> None:
    cli("create", "a")
    cli("create", "b")
    done = cli("--format", "jsonl", "rm", "a", "nosuch", "b", code=3)
    assert done.out == b'{"removed":["a","b"]}\n'


def test_rm_of_a_layer_where_a_command_runs(cli: Cli, web: str) -> None:
    with subprocess.Popen(
        cli.command("run", web, "sh", "-c", "echo up; sleep 600"), stdout=subprocess.PIPE, env=cli.environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert cli.json("inspect", web)[0]["processes"] == 1
        for words in (["rm", web], ["rm", "--force", web]):
            assert cli(*words, "--format", "json", code=5).error["code"] == "layer.held"
        process.terminate()
        assert process.wait() == 143
    cli("rm", web)
