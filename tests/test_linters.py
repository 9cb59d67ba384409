"""The linters, as tests: one command is the whole gate."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")

LINTERS = {
    "ruff check": ["ruff", "check", "--no-cache", "."],
    "ruff format": ["ruff", "format", "--no-cache", "--check", "--diff", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports", "--no-cache"],
}
if (ROOT / "docs" / "conf.py").exists():
    LINTERS["docs"] = ["sphinx-build", "-q", "-W", "--keep-going", "docs", "docs/_build/linter"]

# Written so that they do not find themselves.
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K|Not[I]mplementedError)\b")
# Where packages come from, and where somebody's checkout lies, is the machine's business.
FOREIGN = re.compile(
    r"deb\.[d]ebian\.org|py[p]i\.org|proxy\.[g]olang|registry\.[n]pmjs|[c]rates\.io|(?<!\w)/[w]ork/|/[f]arm"
)
LOCK_FILES = {"uv.lock", "go.sum", "go.mod"}


def files(*patterns: str) -> list[Path]:
    """The files of the project (also those not added yet) that match git's patterns."""
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(
        [*command, *patterns], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []  # a binary file: an image, a corpus


@pytest.mark.parametrize("name", LINTERS)
def test_linter(name: str) -> None:
    program, *arguments = LINTERS[name]
    command = [str(BIN / program), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"


def test_codespell() -> None:
    texts = [str(path) for path in files() if lines(path) and not GENERATED.search(path.name)]
    command = [str(BIN / "codespell"), *texts]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"codespell:\n{done.stdout}{done.stderr}"


def test_no_module_is_too_long() -> None:
    modules = [path for path in files("*.py") if not GENERATED.search(path.name)]
    assert modules
    assert {str(path): len(lines(path)) for path in modules if len(lines(path)) > 600} == {}


def test_nothing_is_marked_unfinished() -> None:
    modules = [path for path in files("*.py") if not GENERATED.search(path.name)]
    found = [
        f"{path}:{n}" for path in modules for n, line in enumerate(lines(path), 1) if UNFINISHED.search(line)
    ]
    assert found == []


def test_no_machine_and_no_package_server_is_named() -> None:
    texts = [path for path in files() if path.name not in LOCK_FILES]
    assert texts
    found = [f"{path}:{n}" for path in texts for n, line in enumerate(lines(path), 1) if FOREIGN.search(line)]
    assert found == []
