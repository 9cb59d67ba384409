"""A guest in which this checkout's tests can run: their scratch directory lies on a disk of its own.

``python -m tests.vm.guest COMMAND [ARGUMENT...]`` runs a command in one, with its output as it comes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests import lanes, scratch
from tests.vm.machine import Machine, make_disk


@contextmanager
def guest(directory: Path) -> Iterator[Machine]:
    """A booted machine whose files lie in ``directory``."""
    # Sparse; what the tests write is gone with the directory.
    disk = make_disk(directory / "disk", size=32 << 30)
    with Machine(directory, disks=[disk]) as machine:
        machine.boot()
        # Not over /var/tmp: the checkout may lie there.
        machine.run("mkdir", "-p", scratch.BASE)
        machine.run("mount", "/dev/vda", scratch.BASE)
        yield machine


def run(
    machine: Machine,
    *command: str,
    env: Mapping[str, str] | None = None,
    timeout: float,
    on_output: Callable[[bytes], None] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in the checkout as this process would run it, with the same package under test."""
    environment = {
        name: os.environ[name] for name in ("PYTHONPATH", "LAYERLIMIT_WHEEL") if name in os.environ
    }
    environment |= {lanes.GUEST: "1", "HOME": "/root", **(env or {})}
    return machine.run(*command, env=environment, check=False, timeout=timeout, on_output=on_output)


def main(command: list[str]) -> int:
    def show(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, guest(Path(directory)) as machine:
        done = run(machine, *command, timeout=24 * 3600.0, on_output=show)
        sys.stderr.buffer.write(done.stderr)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
