"""Running things inside a root and seeing what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerlimit.sandbox import run

# What every Python program that is run inside may use: attempt(name, call) records "ok" or the errno's name.
PRELUDE = """
import ctypes, errno, json, os, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
results = {}

def attempt(name, call):
    try:
        call()
        results[name] = "ok"
    except OSError as error:
        results[name] = errno.errorcode[error.errno]

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def syscall(number, *arguments):
    return check(libc.syscall(ctypes.c_long(number), *(
        ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))

def opened(path, flags=os.O_RDONLY):
    os.close(os.open(path, flags))
"""


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Inside:
    root: Path
    interpreter: str

    def run(self, *argv: str, stdin: int = -1, **options: Any) -> Done:
        """Run a command with its output taken; ``options`` are those of :func:`layerlimit.sandbox.run`."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as null:
            code = run(
                self.root,
                argv,
                stdin=null.fileno() if stdin < 0 else stdin,
                stdout=out.fileno(),
                stderr=err.fileno(),
                **options,
            )
            out.seek(0)
            err.seek(0)
            return Done(code, out.read().decode(), err.read().decode())

    def sh(self, script: str, **options: Any) -> Done:
        return self.run("/bin/sh", "-c", script, **options)

    def python(self, body: str, **options: Any) -> dict[str, Any]:
        """Run a Python program after :data:`PRELUDE`; what it put into ``results``."""
        program = PRELUDE + body + "\nprint(json.dumps(results))"
        done = self.run(self.interpreter, "-I", "-S", "-c", program, **options)
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(done.out)
        return found


def outside(body: str, interpreter: Sequence[str]) -> dict[str, Any]:
    """The same program with all privileges, in a private mount namespace so that the host is unharmed."""
    program = PRELUDE + body + "\nprint(json.dumps(results))"
    command = ["unshare", "--mount", "--ipc", "--uts", *interpreter, "-I", "-S", "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
