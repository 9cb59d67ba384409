"""Life cycle by name: commit, views, labels, filters, namespaces, policy; names that are no file names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from layerlimit.store import Store
from tests import scratch
from tests.archive.images import layer_tar
from tests.cli.conftest import Cli

MIB = 1 << 20
ODD = ["a b", "../../etc/passwd", "registry.example/debian:12", "-x", "ä☃", "n" * 4096, "a\nb\x1b[2J"]


def test_any_text_is_a_name(cli: Cli) -> None:
    for name in ODD:
        cli("create", "--limit", "4m", "--", name)
    assert sorted(entry["name"] for entry in cli.json("ls")) == sorted(ODD)
    assert "a\\x0ab\\x1b[2J" in cli("ls", "-q").lines
    assert len(cli("df").lines) == len(cli("tree").lines) + 1 == len(ODD) + 1
    for name in ODD:
        cli("mount", "--", name)
        assert cli.json("inspect", "--", name)[0]["holds"] == 1
        cli("umount", "--", name)
    assert cli.json("rm", "--", *ODD) == {"removed": ODD}
    assert scratch.leftovers(cli.root, patience=2.0) == []


def test_commit_freezes_under_a_new_name(cli: Cli, web: str) -> None:
    cli("run", web, "sh", "-c", "echo kept >/etc/new")
    cli("mount", web)
    assert cli("--format", "json", "commit", web, "app", code=5).error["code"] == "layer.held"
    cli("umount", web)
    found = cli.json("commit", web, "app:1", "--label", "by=me")
    assert (found["name"], found["kind"], found["labels"]) == ("app:1", "committed", {"by": "me"})
    assert cli("ls", "-q").lines == ["app:1", "base"]
    cli("create", web, "--parent", "app:1", "--limit", "8m")
    assert cli("run", web, "cat", "/etc/new").lines == ["kept"]
    assert cli("--format", "json", "commit", "app:1", "x", code=2).error["code"] == "kind.not_active"
    assert cli("--format", "json", "commit", web, "base", code=4).error["code"] == "layer.exists"


def test_a_commit_without_a_sync_says_so(cli: Cli, web: str) -> None:
    cli("commit", web, "fast", "--no-sync")
    assert not cli.json("inspect", "fast")[0]["durable"]
    assert "committed without a sync" in cli("inspect", "fast").out.decode()
    assert cli.json("inspect", "base")[0]["durable"]


def test_an_active_layer_is_no_parent(cli: Cli, web: str) -> None:
    error = cli("--format", "json", "create", "child", "--parent", web, code=2).error
    assert error["code"] == "parent.not_committed"
    assert f"layerlimit commit {web}" in error["hint"]


def test_committed_layers_and_views_cannot_be_written(cli: Cli, web: str) -> None:
    cli("view", "look", "base")
    for name in ("base", "look"):
        assert "Read-only file system" in cli("run", name, "touch", "/new", code=1).err
        found = cli.json("mount", name)
        assert found["read_only"]
        with pytest.raises(OSError, match="Read-only"):
            open(f"{found['path']}/new", "w").close()
        assert cli.json("umount", name)["mounted"] is False
        assert cli("apply", name, stdin=layer_tar({"x": b""}), code=2).out == b""
    assert cli("--format", "json", "rm", "base", code=5).error["code"] == "layer.has_children"
    assert cli("view", "bad", web, code=2).out == b""


def test_rename_and_labels(cli: Cli, web: str) -> None:
    path = cli("mount", web).lines[0]
    assert cli.json("rename", web, "shop/1")["name"] == "shop/1"
    assert cli("mount", "shop/1").lines == [path]
    for _ in range(2):
        cli("umount", "shop/1")
    cli("rename", "shop/1", "base", code=4)
    cli("rename", web, "other", code=3)
    assert cli("label", "shop/1", "a=1", "b=x=y", "c=").lines == ["a=1", "b=x=y"]
    assert cli.json("label", "shop/1", "a=", "c=3")["labels"] == {"b": "x=y", "c": "3"}
    assert cli("label", "shop/1").lines == ["b=x=y", "c=3"]


def test_filters(cli: Cli, web: str) -> None:
    cli("create", "job-1", "-p", "base", "--label", "team.x=a")
    cli("create", "job-2", "-p", "base", "--label", "team.x=b")
    for filters, names in (
        (["kind==committed"], ["base"]),
        (["name~=/^job-/"], ["job-1", "job-2"]),
        (['labels."team.x"==a', "kind==committed"], ["base", "job-1"]),
        (["parent==base,name!=web"], ["job-1", "job-2"]),
    ):
        words = [word for each in filters for word in ("--filter", each)]
        assert cli("ls", "-q", *words).lines == names
    assert cli("--format", "json", "ls", "-f", "name=", code=2).error["code"] == "filter.invalid"


def test_namespaces_do_not_see_each_other(cli: Cli, web: str) -> None:
    cli("--namespace", "k8s.io", "create", web)
    assert cli("ls", "-q", "--namespace", "k8s.io").lines == [web]
    cli("create", "x", "--parent", "base", "--namespace", "k8s.io", code=3)
    cli("rm", web)
    assert cli("ls", "-q").lines == ["base"]
    done = subprocess.run(
        cli.command("ls", "-q"),
        env={**cli.environment, "LAYERLIMIT_NAMESPACE": "k8s.io"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"web\n"


def test_admission(cli: Cli) -> None:
    cli("create", "a", "--limit", "8m")
    host = cli.json("df", "--host")
    assert host["promised"] == 8 * MIB
    assert host["admissible"] == host["size"]
    assert host["size"] == os.statvfs(cli.root).f_blocks * os.statvfs(cli.root).f_frsize
    assert "limits promise 8 MiB of" in cli("df").err
    assert cli.json("doctor")["root"]["capacity"]["promised"] == 8 * MIB
    ratio = 12 * MIB / host["size"]
    assert cli.json("config", f"overcommit={ratio}", "default-limit=4m")["default_limit"] == 4 * MIB
    error = cli("--format", "json", "create", "b", "--limit", "8m", code=6).error
    assert (error["code"], "config overcommit" in error["hint"]) == ("host.overcommit", True)
    assert cli.json("create", "b")["limit"]["bytes"] == 4 * MIB
    assert cli.json("create", "free", "--limit", "none")["limit"] is None
    cli("resize", "b", "5m", code=6)
    cli("config", "overcommit=1e6")
    cli("resize", "b", "64m")
    cli("config", f"floor={1 << 62}")
    error = cli("--format", "json", "create", "c", code=6).error
    assert error["code"] == "host.full"
    assert "b (" in error["message"]
    assert cli("config").lines == ["overcommit=1e+06", "floor=4194304TiB", "default-limit=4MiB"]
    cli("config", "floor=none", "default-limit=none")
    cli("create", "c")


def test_rm_deletes_at_once(cli: Cli, web: str) -> None:
    image = cli.root / "containers_quota" / f"{cli.id(web)}.ext4"
    assert image.exists()
    cli("rm", web)
    assert not image.exists()


def test_gc_finishes_what_could_not_be_deleted(cli: Cli, web: str) -> None:
    image = cli.root / "containers_quota" / f"{cli.id(web)}.ext4"
    with Store(cli.root) as store:
        store.rm(web)
    assert image.exists()
    assert cli.json("gc") == {"notes": []}
    assert not image.exists()


def test_errors_speak_of_names(cli: Cli, web: str) -> None:
    cli("rename", web, "my job")
    id = cli.id("my job")
    cli("mount", "my job")
    for words in (
        ["apply", "my job"],
        ["commit", "my job", "x"],
        ["rm", "my job"],
        ["resize", "my job", "4m"],
    ):
        done = cli(*words, stdin=layer_tar({"x": b""}), code=5)
        assert "'my job'" in done.err
        assert id not in done.err
    cli("umount", "my job")


def test_a_killed_import_leaves_nothing(cli: Cli) -> None:
    cli("create", "other")
    first = layer_tar({"etc/": b"", "etc/issue": b"x"})
    with subprocess.Popen(
        cli.command("import", "base", "-"), stdin=subprocess.PIPE, env=cli.environment
    ) as process:
        assert process.stdin is not None
        process.stdin.write(first[:1024])
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while len(os.listdir(cli.root / "layers")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert cli("ls", "-q").lines == ["other"]  # opening a store leaves an import that is under way alone
        assert len(os.listdir(cli.root / "layers")) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert cli("check").out == b""
    for place in ("layers", "diff", "meta"):
        assert os.listdir(cli.root / place) == [cli.id("other")]
    assert not (cli.root / "lost").exists()


def test_an_import_killed_when_it_holds_data(cli: Cli) -> None:
    """After the first of two tars; what was applied is not the user's only copy and goes."""
    script = """
import io, os, signal, sys
from layerlimit.driver import Driver
from layerlimit.store import Store
from tests.archive.images import layer_tar
with Store(sys.argv[1]) as store:
    tars = [io.BytesIO(layer_tar({"x": b"x"})), io.BytesIO(layer_tar({"y": b"y"}))]
    store.import_tar("base", *tars, told=lambda applied: os.kill(os.getpid(), signal.SIGKILL))
"""
    done = subprocess.run([sys.executable, "-c", script, str(cli.root)], env=cli.environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (id,) = os.listdir(cli.root / "layers")
    assert (cli.root / "diff" / id / "x").exists()
    assert cli("check").out == b""
    assert os.listdir(cli.root / "diff") == []
    assert not (cli.root / "lost").exists()


def test_what_an_opening_moved_out_of_the_way_is_told(cli: Cli) -> None:
    """Files of a layer that has the form of a store's and no name: nobody knows what they are worth."""
    cli("create", "web")
    script = """
import os, signal, sys
from layerlimit.driver import Driver
driver = Driver(sys.argv[1])
driver.create("saaaaaaaa")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(cli.root)], env=cli.environment, check=False)
    (cli.root / "diff/saaaaaaaa/precious").write_text("x")
    said = cli("ls")
    assert len(said.lines) == 2
    assert "it is kept in" in said.err
    (kept,) = (cli.root / "lost").iterdir()
    assert (kept / "diff/precious").read_text() == "x"
    assert cli("ls").err == ""
