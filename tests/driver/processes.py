"""Other processes that use a driver, told what to do line by line."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_SERVE = """
import sys
from contextlib import ExitStack
from layerlimit import Driver, Limit
driver = Driver(sys.argv[1], "overlay")
held = ExitStack()
for line in sys.stdin:
    try:
        print("ok", eval(line), flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
held.close()
"""


class Process:
    """A process with a driver of its own over ``root``; evaluates expressions."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _SERVE, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, expression: str) -> str:
        """The expression's value as text, or the name and text of the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip().removeprefix("ok ")

    def kill(self) -> None:
        """SIGKILL: nothing in the process runs any more."""
        self._process.kill()
        self.end()

    def end(self) -> None:
        """Let it end by itself, if it has not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@contextlib.contextmanager
def process(root: Path) -> Iterator[Process]:
    """A :class:`Process` that ends with the block."""
    made = Process(root)
    try:
        yield made
    finally:
        made.end()
