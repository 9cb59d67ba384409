"""``changes``, ``diff`` and ``apply``: what goes out and what comes in."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.archive.images import layer_tar, sha256
from tests.cli.conftest import Cli


def test_changes_as_text_and_json(cli: Cli, web: str) -> None:
    path = os.fsencode(cli("mount", web).lines[0])
    odd = [b"/tmp/a\nA b", b"/tmp/caf\xc3\xa9", b"/tmp/raw\xff"]
    for name in odd:
        with open(path + name, "w"):
            pass
    os.unlink(path + b"/etc/issue")
    assert cli("changes", web).out.splitlines() == [
        b"C /etc",
        b"D /etc/issue",
        b"C /tmp",
        b"A /tmp/a\\x0aA b",
        b"A /tmp/caf\xc3\xa9",
        b"A /tmp/raw\xff",
    ]
    found = cli.json("changes", web)
    assert [os.fsencode(entry["path"]) for entry in found if entry["kind"] == "A"] == odd
    lines = cli("changes", web, "--format", "jsonl").lines
    assert [json.loads(line) for line in lines] == found
    cli("umount", web)


def test_changes_of_a_base_are_all_it_has(cli: Cli, web: str) -> None:
    lines = cli("changes", "base").lines
    assert "A /etc/issue" in lines
    assert all(line.startswith("A ") for line in lines)


@pytest.mark.lane("gnu_tar")
def test_diff_to_stdout_and_to_a_file(cli: Cli, web: str, tmp_path: Path) -> None:
    cli("run", web, "sh", "-c", "echo new >/etc/new; rm /etc/issue")
    file = tmp_path / "web.tar"
    file.write_text("old")
    assert cli.json("diff", web, "-o", str(file)) == {
        "name": "web",
        "file": str(file),
        "bytes": file.stat().st_size,
    }
    assert cli("diff", web).out == file.read_bytes()
    listed = subprocess.run(["tar", "-tf", file], check=True, capture_output=True, text=True).stdout
    assert listed.split() == ["etc/", "etc/.wh.issue", "etc/new"]
    assert sorted(os.listdir(tmp_path)) == ["root", "web.tar"]


def test_a_diff_that_fails_leaves_the_old_file(cli: Cli, web: str, tmp_path: Path) -> None:
    file = tmp_path / "web.tar"
    file.write_text("old")
    assert cli("diff", "nosuch", "-o", str(file), code=3).out == b""
    assert file.read_text() == "old"
    cli("diff", web, "-o", str(tmp_path / "no/such/place"), code=3)
    cli("diff", "base", "-o", "/dev/full", code=6)
    assert sorted(os.listdir(tmp_path)) == ["root", "web.tar"]
    cli("diff", web, "-o", "/dev/null")


def test_a_tar_is_not_written_to_a_terminal(cli: Cli, web: str) -> None:
    ours, theirs = pty.openpty()
    try:
        for words in (["diff", web], ["apply", web], ["import", "x", "-"]):
            done = subprocess.run(
                cli.command(*words),
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.PIPE,
                env=cli.environment,
                check=False,
            )
            assert done.returncode == 2
            assert b"terminal" in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)
    assert cli("ls", "-q").lines == ["base", "web"]


def test_apply(cli: Cli, web: str, tmp_path: Path) -> None:
    layer = layer_tar({"etc/": b"", "etc/new": b"new", "etc/.wh.issue": b""})
    done = cli("--format", "json", "apply", web, stdin=layer)
    assert json.loads(done.out) == {
        "name": "web",
        "bytes": 3,
        "entries": 3,
        "diff_id": sha256(layer),
        "skipped": 0,
        "warnings": [],
    }
    assert cli("changes", web).lines == ["C /etc", "D /etc/issue", "A /etc/new"]
    (tmp_path / "more.tar").write_bytes(layer_tar({"more": b"more"}))
    cli("apply", web, str(tmp_path / "more.tar"))
    assert cli("run", web, "cat", "/more").out == b"more"


def test_what_apply_refuses(cli: Cli, web: str, tmp_path: Path) -> None:
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        entry = tarfile.TarInfo("../../../../escaped")
        tar.addfile(entry)
    good = layer_tar({"etc/": b"", "etc/new": b"new"})
    for layer, code in (
        (b"junk" * 1000, 2),
        (good[:700], 2),
        (evil.getvalue(), 2),
        (layer_tar({"large": bytes(40 << 20)}), 6),
    ):
        assert cli("apply", web, stdin=layer, code=code).out == b""
        assert cli("changes", web).out == b""
    assert "is a directory" in cli("apply", web, str(tmp_path), code=2).err
    cli("apply", web, str(tmp_path / "missing"), code=3)
    cli("mount", web)
    assert cli("--format", "json", "apply", web, stdin=good, code=5).error["code"] == "layer.held"
    cli("umount", web)
