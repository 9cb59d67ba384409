"""A command on the caller's own terminal: the foreground job there, until it ends."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.lane("root", "overlay")

PROGRAM = """
import os, sys
from pathlib import Path
from layerlimit.sandbox import run
code = run(Path(sys.argv[1]), sys.argv[2:])
print("code", code, os.tcgetpgrp(0) == os.getpgrp(), flush=True)
"""


@dataclass(slots=True)
class Terminal:
    master: int
    process: subprocess.Popen[bytes]
    text: str = ""

    def wait_for(self, text: str) -> str:
        """What was shown up to ``text``, which must come within the test's time."""
        while text not in self.text:
            assert select.select([self.master], [], [], 20)[0], self.text
            self.text += os.read(self.master, 4096).decode()
        before, _, self.text = self.text.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def started(*argv: str) -> Terminal:
        master, slave = os.openpty()
        process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-c", PROGRAM, str(root), *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(slave)
        terminals.append(Terminal(master, process))
        return terminals[-1]

    yield started
    for terminal in terminals:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def test_the_terminal_is_the_commands_and_then_the_callers(start: Callable[..., Terminal]) -> None:
    terminal = start("sh", "-c", "tty; echo $TERM; ls /dev; read line; echo got $line")
    assert terminal.wait_for("\n") == "/dev/console\r\n"
    assert terminal.wait_for("zero").startswith("dumb\r\n")
    terminal.type("hello\n")
    terminal.wait_for("got hello")
    terminal.wait_for("code 0 True")


def test_control_c_goes_to_the_command_alone(start: Callable[..., Terminal]) -> None:
    terminal = start("sh", "-c", "trap 'echo trapped; exit 5' INT; echo ready; while :; do sleep 0.1; done")
    terminal.wait_for("ready")
    terminal.type("\x03")
    terminal.wait_for("trapped")
    terminal.wait_for("code 5 True")


def test_control_c_ends_a_command_that_does_not_handle_it(start: Callable[..., Terminal]) -> None:
    terminal = start("sh", "-c", "echo ready; exec sleep 60")
    terminal.wait_for("ready")
    terminal.type("\x03")
    terminal.wait_for("code 130 True")


def test_control_z_does_not_stop_what_nobody_could_resume(start: Callable[..., Terminal]) -> None:
    terminal = start("sh", "-c", "echo ready; read line; echo got $line")
    terminal.wait_for("ready")
    terminal.type("\x1a")
    terminal.type("hello\n")
    terminal.wait_for("got hello")
    terminal.wait_for("code 0 True")


def test_a_shell_has_job_control(start: Callable[..., Terminal]) -> None:
    terminal = start("sh", "-i")
    terminal.type("sh -c 'echo running; exec sleep 60'\n")
    terminal.wait_for("running\r\n")
    terminal.type("\x1a")
    terminal.type("jobs\n")
    terminal.wait_for("Stopped")
    terminal.type("exit 6\nexit 6\n")
    terminal.wait_for("code 6 True")


def test_without_a_terminal_the_command_has_a_session_of_its_own(root: Path) -> None:
    program = PROGRAM.replace("os.tcgetpgrp(0) == os.getpgrp()", "''")
    script = "cut -d' ' -f1,5,6,7 /proc/self/stat; : < /dev/tty"
    done = subprocess.run(
        [sys.executable, "-c", program, str(root), "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.split("\n")[0].split()[1:] == ["2", "2", "0"]  # process group, session, terminal
    assert "No such device or address" in done.stderr
