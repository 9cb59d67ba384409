"""The command as a user runs it, and a small root filesystem to run commands in."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layerlimit.driver import Driver
from layerlimit.limit import Limit
from layerlimit.store import Store

PROGRAMS = "sh cat date dd df echo env false grep id kill ls mknod mount pwd rm sleep touch true umount"


@dataclass(frozen=True, slots=True)
class Done:
    """What a command line came to."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode(errors="surrogateescape").splitlines()

    @property
    def error(self) -> dict[str, str]:
        """The error of a command that was asked for JSON: the last line of stderr."""
        found: dict[str, str] = json.loads(self.err.splitlines()[-1])["error"]
        return found


@dataclass(frozen=True, slots=True)
class Cli:
    """Runs ``layerlimit`` on a root of its own, in a process of its own."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LAYERLIMIT_ROOT": str(self.root), "PYTHONWARNINGS": "error"}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "layerlimit", *words]

    def __call__(self, *words: str, code: int = 0, stdin: bytes = b"") -> Done:
        """Run the command line and hold it to its exit code."""
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, env=self.environment, check=False
        )
        found = Done(done.returncode, done.stdout, done.stderr.decode(errors="surrogateescape"))
        assert found.code == code, found
        assert "Traceback" not in found.err, found.err
        return found

    def json(self, *words: str) -> Any:
        return json.loads(self("--format", "json", *words).out)

    def id(self, name: str) -> str:
        """What the driver calls a layer: the name of its files."""
        with Store(self.root) as store:
            return store.stat(name).id

    def mnt(self, name: str) -> Path:
        """Where a layer is mounted."""
        return self.root / "mnt" / self.id(name)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    root = tmp_path / "root"
    yield Cli(root)
    if (root / "format").exists():
        Driver(root).cleanup()


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of a root filesystem with busybox, debugfs and a user ``worker``."""
    program = shutil.which("busybox")
    assert program is not None, "busybox is not installed"
    path = tmp_path_factory.mktemp("busybox") / "busybox.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "root", "tmp", "usr", "usr/sbin", "var", "var/log"):
            _add(tar, name, type=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        tar.add(program, "bin/busybox")
        for applet in PROGRAMS.split():
            _add(tar, f"bin/{applet}", type=tarfile.SYMTYPE, linkname="busybox")
        _add(
            tar,
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/home/worker:/bin/sh\n",
        )
        _add(tar, "etc/group", b"root:x:0:\nworker:x:1000:\nstaff:x:50:worker\n")
        _add(tar, "etc/issue", b"busybox\n")
        _add_with_libraries(tar, "debugfs")
    return path


def _add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o755
    for key, value in fields.items():
        setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(content))


def _add_with_libraries(tar: tarfile.TarFile, name: str) -> None:
    program = shutil.which(name, path="/usr/sbin:/sbin")
    assert program is not None
    tar.add(os.path.realpath(program), f"usr/sbin/{name}")
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            tar.add(os.path.realpath(word), word.lstrip("/"))


@pytest.fixture
def web(cli: Cli, busybox: Path) -> str:
    """A layer of 32 MiB over a committed base with busybox."""
    with Store(cli.root) as store, open(busybox, "rb") as tar:
        store.import_tar("base", tar)
        store.create("web", "base", limit=Limit(32 << 20))
    return "web"
