"""Global options, help, exit codes and the form of errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import layerlimit
from layerlimit.cli import main
from layerlimit.cli.program import COMMANDS, Program, program
from tests.cli.conftest import Cli


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"layerlimit {layerlimit.__version__}\n".encode()


def test_help_lists_every_command(cli: Cli) -> None:
    text = cli("--help").out.decode()
    for name in COMMANDS:
        assert f"\n  {name} " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"Usage: layerlimit {name} ")
    assert err == ""


def test_every_module_of_a_command_is_listed() -> None:
    import layerlimit.cli.commands as package

    modules = {path.stem.rstrip("_") for path in Path(package.__path__[0]).glob("*.py")} - {"", "init"}
    assert {name for name in modules if name != "__init"} == set(COMMANDS)
    assert isinstance(program, Program)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["create"],
        ["create", "a", "b"],
        ["create", "a", "--nonsense"],
        ["create", "a", "--inodes", "5"],
        ["create", "a", "--ephemeral"],
        ["create", "a", "--limit", "12q"],
        ["create", "a", "--limit", "-1"],
        ["create", "a", "--limit", "0"],
        ["create", "a", "--limit", "99999t"],
        ["create", "a", "--limit", "1m", "--inodes", "0"],
        ["create", "a" * 4097],
        ["create", "ä" * 2049],
        ["create", "\udcff"],
        ["create", ""],
        ["create", "a", "--label", "novalue"],
        ["create", "a", "--label", "=x"],
        ["--namespace", "", "create", "a"],
        ["config", "floor"],
        ["config", "floor=12q"],
        ["config", "overcommit=0"],
        ["config", "overcommit=nan"],
        ["config", "colour=red"],
        ["check", "--force"],
        ["--format", "yaml", "ls"],
        ["--log-level", "loud", "ls"],
        ["resize", "a"],
        ["rm"],
        ["migrate"],
    ],
    ids=lambda words: " ".join(words)[:40] or "nothing",
)
def test_bad_input_is_exit_code_2(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    assert main(["--root", str(root), *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("layerlimit: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    if root.exists():  # made before the name was looked at; nothing is in it
        assert os.listdir(root / "layers") == []


def test_an_error_in_json(cli: Cli) -> None:
    error = cli("create", "a" * 5000, "--format", "json", code=2).error
    assert error["code"] == "name.invalid"
    assert "aaa" in error["message"]
    assert error["hint"]


def test_a_usage_error_in_json(cli: Cli) -> None:
    for words in (["create", "--format=json"], ["--format", "json", "create", "x", "--what"]):
        assert cli(*words, code=2).error["code"] == "usage"


def test_text_of_an_error(cli: Cli, web: str) -> None:
    assert cli("inspect", "nosuch", code=3).err == (
        "layerlimit: there is no layer 'nosuch' (see which there are with 'layerlimit ls')\n"
    )


@pytest.mark.parametrize("name", ["umount", "inspect", "changes", "diff", "apply", "mount", "rm"])
def test_an_unknown_layer_is_exit_code_3(cli: Cli, name: str) -> None:
    cli("create", "other")
    assert "nosuch" in cli(name, "nosuch", code=3).err


def test_a_root_is_made_only_by_what_makes_layers(cli: Cli) -> None:
    for words in (["mount", "x"], ["df", "x"], ["resize", "x", "1g"], ["rm", "x"], ["diff", "x"]):
        assert str(cli.root) in cli(*words, code=3).err
    for words in (["ls"], ["df"], ["tree"]):
        assert "there are no layers" in cli(*words).err
        assert json.loads(cli(*words, "--format", "json").out) == []
    assert not cli.root.exists()


def test_a_root_that_is_a_file(cli: Cli) -> None:
    cli.root.write_text("")
    assert "is no directory" in cli("create", "x", code=2).err


def test_global_options_stand_anywhere_and_the_last_counts(cli: Cli, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    cli("create", "here")
    cli("--root", other, "create", "there")
    assert [entry["name"] for entry in json.loads(cli("ls", "--format", "json").out)] == ["here"]
    assert cli("--root", str(cli.root), "ls", "--root", other, "-q").lines == ["there"]
    Driver = layerlimit.Driver
    Driver(other).cleanup()


def test_quiet(cli: Cli) -> None:
    assert cli("create", "a").err != ""
    assert cli("-q", "create", "b").err == ""
    assert cli("ls", "-q").lines == ["a", "b"]
    assert cli("-q", "create", "b", code=4).err != ""


@pytest.mark.parametrize("name", ["ls", "create", "doctor", "migrate", "run"])
def test_without_root_it_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    words = {"create": ["x"], "migrate": [str(tmp_path)], "run": ["x", "true"]}.get(name, [])
    assert main(["--root", str(tmp_path / "root"), name, *words]) == (125 if name == "run" else 8)
    assert "only root may do" in capfd.readouterr().err


def test_a_reader_that_goes_away_is_no_error_message(cli: Cli, web: str) -> None:
    with subprocess.Popen(
        cli.command("diff", "base"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(512)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_full_stdout_is_an_error(cli: Cli, web: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cli.command("ls"), stdout=full, stderr=subprocess.PIPE, env=cli.environment, check=False
        )
    assert done.returncode == 6
    assert done.stderr == b"layerlimit: cannot write to stdout: No space left on device\n"


def test_closed_descriptors(cli: Cli, web: str) -> None:
    script = 'exec "$0" -m layerlimit ls >&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], env=cli.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "layerlimit: stdout is closed (give it a place to write to)\n"
    script = 'exec "$0" -m layerlimit mount web --read-only 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], env=cli.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout == f"{cli.mnt(web)}@ro\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_undoes_an_import(cli: Cli, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        cli.command("import", "base", "-"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environment,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(bytes(512))
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not (cli.root / "layers").is_dir() or not os.listdir(cli.root / "layers"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == code
    assert cli("ls", "-q").lines == []


def test_damage_in_one_layer_does_not_hide_the_others(cli: Cli) -> None:
    for name in ("a", "b"):
        cli("create", name, "--limit", "8m")
    (cli.root / "meta" / cli.id("a")).write_text("{")
    done = cli("ls")
    assert [line.split()[:4] for line in done.lines[1:]] == [
        ["a", "active", "-", "damaged"],
        ["b", "active", "-", "8"],
    ]
    assert "a is damaged" in done.err
    assert cli.json("ls")[0]["error"]["code"] == "layer.record"
    assert cli("inspect", "a", code=9).out == b""
    assert [line.split()[0] for line in cli("df").lines[1:]] == ["b"]
    cli("rm", "a")
    assert cli("ls", "-q").lines == ["b"]
