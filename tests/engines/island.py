"""Namespaces in which engines run, so that none of what they start or mount outlives a test.

An :class:`Island` is a process namespace and a mount namespace. Its first process waits for its standard
input to close, which the death of the tests brings about too; with it the kernel kills every daemon, shim and
container inside, the mounts go with the last of them and the loop devices with the mounts. ``/run`` is a file
system of its own: engines of different islands, and of the machine, never share a socket.

Control groups have no such end. Those of an island are all below one name, and taken away when it closes; if
the tests are killed, by the sweep of the next run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from tests import scratch

T = TypeVar("T")

# As the first process of its namespace: reaps what is orphaned to it by ignoring the deaths of children.
_INIT = """
import signal, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""


def awaited(what: str, condition: Callable[[], T], *, seconds: float = 60) -> T:
    """The first true value of ``condition``; AssertionError, naming ``what``, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.01)
    return value


def _child_of(pid: int) -> int:
    """The only child of a process; 0 while it has none."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                return int(status.parent.name)
    return 0


@dataclass
class Daemon:
    """A program running in an island; ``pid`` is its number outside."""

    name: str
    log: Path
    entering: subprocess.Popen[bytes]
    pid: int

    def running(self) -> bool:
        return self.entering.poll() is None

    def end(self, number: int = signal.SIGTERM, *, seconds: float = 30) -> None:
        """Sends a signal and waits for the end."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        self.entering.wait(timeout=seconds)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass
class Island:
    """See the module; ``directory`` holds all files, ``cgroup`` names the parent of its control groups."""

    directory: Path
    init: int
    cgroup: str
    daemons: list[Daemon] = field(default_factory=list)

    def _enter(self, *command: str | Path) -> list[str]:
        return ["nsenter", f"--target={self.init}", "--mount", "--pid", "--", *map(str, command)]

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        seconds: float = 60,
        stdin: IO[bytes] | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end; with ``check``, a failure fails the test with what it said."""
        done = subprocess.run(
            self._enter(*command),
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=stdin or subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        if check and done.returncode != 0:
            said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
            raise AssertionError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{said}")
        return done

    def start(self, name: str, *command: str | Path, environment: dict[str, str] | None = None) -> Daemon:
        """Starts a program that stays, its output appended to ``<directory>/<name>.log``."""
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            entering = subprocess.Popen(
                self._enter(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
            )
        daemon = Daemon(name=name, log=log, entering=entering, pid=0)
        self.daemons.append(daemon)
        daemon.pid = awaited(f"{name} to start", lambda: _child_of(entering.pid) or not daemon.running())
        assert daemon.running(), f"{name} ended at once:\n{daemon.tail()}"
        return daemon

    def mounts(self) -> list[str]:
        """The mount points below the directory, as the island sees them."""
        lines = Path(f"/proc/{self.init}/mountinfo").read_text().splitlines()
        points = [line.split(" ")[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.directory}/")]

    def open_to_mapped_users(self) -> None:
        """Lets a root that is another user outside reach its root file system, by a path through these."""
        for path in (self.directory, *self.directory.parents):
            path.chmod(path.stat().st_mode | 0o011)

    def loops(self) -> list[str]:
        return scratch.loops_below(self.directory)


@contextmanager
def island(directory: Path) -> Iterator[Island]:
    """An island whose files are in ``directory``; at its end, all that ran or was mounted inside is gone."""
    separate = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--propagation=slave"]
    # With the standard library alone: it starts quickly, and loads nothing of the code under test.
    line = [*separate, sys.executable, "-S", "-c", _INIT]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        made: Island | None = None
        try:
            assert process.stdout.readline() == b"ready\n"
            made = Island(directory, _child_of(process.pid), scratch.control_group(directory))
            yield made
        finally:
            process.stdin.close()
            process.wait(timeout=30)
            for daemon in made.daemons if made is not None else []:
                daemon.entering.wait(timeout=30)
            if made is not None:
                scratch.remove_control_groups(made.cgroup)
