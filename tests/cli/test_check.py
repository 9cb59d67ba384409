"""``layerlimit check``: exit codes, forms of output, and a database that is missing or damaged."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from layerlimit.store import Store
from tests.archive.images import layer_tar
from tests.cli.conftest import Cli

MIB = 1 << 20


@pytest.fixture
def store(cli: Cli) -> Cli:
    """A committed base, a limited layer over it with a label, and one in another namespace."""
    cli("import", "my base", "-", stdin=layer_tar({"etc/": b"", "etc/issue": b"x"}))
    cli("create", "a:b", "--parent", "my base", "--limit", "8m", "--label", "team=web")
    cli("create", "a:b", "--namespace", "other")
    return cli


def test_nothing_found(cli: Cli, store: Cli) -> None:
    for words in ([], ["--repair"], ["--quick"]):
        done = cli("check", *words)
        assert (done.out, done.err) == (b"", "layerlimit: nothing was found\n")
        assert cli.json("check", *words) == []
        assert cli("check", "--format", "jsonl", *words).out == b""


def test_no_root_yet(cli: Cli) -> None:
    assert cli.json("check", "--repair") == []
    assert not cli.root.exists()


def test_found_and_repaired(cli: Cli, store: Cli) -> None:
    (cli.root / "diff" / "stray").mkdir()
    done = cli("check", code=9)
    assert done.lines[0].split() == ["CODE", "SUBJECT", "REPAIRED", "MESSAGE", "REPAIR"]
    assert done.lines[1].split()[:3] == ["stray", f"{cli.root}/diff/stray", "no"]
    assert "move it to lost/" in done.lines[1]
    (found,) = cli.json("check", "--repair")
    assert (found["code"], found["repaired"], found["repair"]) == ("stray", True, "move it to lost/")
    assert (found["layer"], "diff/stray" in found["message"]) == (None, True)
    assert cli.json("check") == []


def test_what_cannot_be_repaired_is_9_and_kept(cli: Cli, store: Cli) -> None:
    image = cli.root / "containers_quota" / f"{cli.id('a:b')}.ext4"
    image.rename(cli.root.parent / "kept")
    done = cli("--format", "jsonl", "check", "--repair", code=9)
    (found,) = map(json.loads, done.lines)
    assert (found["code"], found["subject"], found["repaired"]) == ("image.missing", "a:b", False)
    (cli.root.parent / "kept").rename(image)
    assert cli.json("check") == []


def _remove(path: Path) -> None:
    for each in path.parent.glob("store.db*"):
        each.unlink()


def _no_database(path: Path) -> None:
    path.write_bytes(b"junk" * 5000)


def _empty(path: Path) -> None:
    _remove(path)
    path.touch()


@pytest.mark.parametrize(
    ("harm", "code"), [(_remove, "store.missing"), (_no_database, "store.corrupt"), (_empty, "store.corrupt")]
)
def test_a_database_that_is_gone_is_rebuilt_from_the_layers(
    cli: Cli, store: Cli, harm: Callable[[Path], None], code: str
) -> None:
    base, web = cli.id("my base"), cli.id("a:b")
    harm(cli.root / "store.db")
    before = sorted(os.listdir(cli.root / "layers"))
    for words in (["ls"], ["create", "x"], ["gc"], ["rm", "-f", "a:b"]):
        error = cli("--format", "json", *words, code=9).error
        assert error["code"] == code
        assert "layerlimit check --repair" in error["hint"]
    found = json.loads(cli("--format", "json", "check", code=9).out)
    assert [each["code"] for each in found] == [code]
    (found,) = cli.json("check", "--repair")
    assert (found["code"], found["repaired"]) == (code, True)
    assert sorted(os.listdir(cli.root / "layers")) == before
    rows = {entry["name"]: (entry["kind"], entry["parent"], entry["limit"]) for entry in cli.json("ls")}
    assert rows.pop(base) == ("committed", None, None)
    kind, parent, limit = rows.pop(web)
    assert (kind, parent, limit["bytes"]) == ("active", base, 8 * MIB)
    assert [row[:2] for row in rows.values()] == [("active", None)]
    assert cli.json("df", "--host")["promised"] == 8 * MIB
    assert cli.json("check") == []
    if harm is _no_database:
        (lost,) = (each for each in (cli.root / "lost").iterdir() if ".store.db." in each.name)
        assert lost.read_bytes() == b"junk" * 5000


def test_names_that_can_be_read_from_a_damaged_database_are_kept(cli: Cli, store: Cli) -> None:
    """An index is damaged: the rows are there, and check finds it."""
    path = cli.root / "store.db"
    with Store(cli.root):
        pass  # the last one to close it writes everything into the file
    db = sqlite3.connect(path)
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entry_by_parent'").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    assert cli("check", "--quick", code=9).lines
    found = cli.json("check", "--repair")
    assert found[0]["code"] in ("store.corrupt", "store.damaged")
    assert found[0]["repaired"]
    assert cli("ls", "-q").lines == ["a:b", "my base"]
    assert cli("ls", "-q", "--namespace", "other").lines == ["a:b"]
    assert cli.json("label", "a:b")["labels"] == {"team": "web"}
    assert cli.json("inspect", "a:b")[0]["chain"] == ["my base"]
    assert cli.json("check") == []


def test_a_rebuild_keeps_layers_whose_files_are_damaged(cli: Cli, store: Cli) -> None:
    id = cli.id("a:b")
    (cli.root / "meta" / id).write_text("{")
    _remove(cli.root / "store.db")
    done = cli("--format", "json", "check", "--repair", code=9)
    assert [each["code"] for each in json.loads(done.out)] == ["store.missing", "layer.record"]
    assert id in cli("ls", "-q").lines
