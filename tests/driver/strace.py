"""Running one operation in a process of its own, under strace, to kill it, fail it or stop it anywhere.

A *victim* is forked from a server that has imported the package and nothing else; it opens the driver (or the
store, tests/store/victim.py), stops, and is let go once strace has it. The steps of an operation are what a
trace of it shows, not places that somebody chose: every call that changes a file, a name, a mount, a loop
device, or starts a program.

strace delivers an injected signal at the entry of the call, and SIGKILL there keeps the kernel from running
it (test_strace.py shows both): killing at a step leaves what was there *before* it, and killing at the
next call what was there *after* it. :meth:`Trace.points` therefore has every step and the call that follows
each step, closing a descriptor included, as that ends locks, detached mounts and loop devices.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGING = {
    "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link",
    "linkat", "symlink", "symlinkat", "mknod", "mknodat", "truncate", "ftruncate", "fallocate", "write",
    "pwrite64", "writev", "pwritev", "copy_file_range", "sendfile", "fsync", "fdatasync", "syncfs",
    "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "utimensat", "setxattr",
    "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "mount", "umount2",
    "fsopen", "fspick", "fsmount", "move_mount", "mount_setattr", "fork", "vfork", "clone", "clone3",
    "wait4",
}  # fmt: skip
# Calls that change something only with certain arguments, which the pattern finds.
SOMETIMES = {
    "open": re.compile(r"O_CREAT|O_TRUNC"),
    "openat": re.compile(r"O_CREAT|O_TRUNC"),
    "openat2": re.compile(r"O_CREAT|O_TRUNC"),
    "open_tree": re.compile(r"OPEN_TREE_CLONE|0x1"),
    "fsconfig": re.compile(r"CMD_CREATE|CMD_RECONFIGURE"),
    # LOOP_CONFIGURE, LOOP_SET_CAPACITY, FICLONE, FS_IOC_SETFLAGS, EXT4_IOC_RESIZE_FS
    "ioctl": re.compile(r"0x4c0a|0x4c07|0x40049409|0x40086602|0x40086610"),
}
END = "sched_yield"  # what a victim calls when the operation is over
TRACED = (*CHANGING, *SOMETIMES, "close", END)

_LINE = re.compile(r"(\w+)\((.*)")


@dataclass(frozen=True, slots=True)
class Step:
    """The ``number``-th call of ``call`` (from 1) that a victim's main thread makes; ``text`` shows it."""

    call: str
    number: int
    text: str
    changes: bool

    def __str__(self) -> str:
        return f"{self.call} #{self.number} {self.text[:160]}"


@dataclass(frozen=True, slots=True)
class Trace:
    """The traced calls of one operation in order, without what came after it."""

    steps: tuple[Step, ...]

    @property
    def changes(self) -> list[Step]:
        """The steps that change something."""
        return [step for step in self.steps if step.changes]

    def failing(self) -> list[Step]:
        """The changes that the kernel did, and could have refused."""
        never = ("wait4", "fork", "vfork", "clone", "clone3")
        return [step for step in self.changes if step.call not in never and " = -1 " not in step.text]

    def points(self) -> list[Step]:
        """Where to kill: at every change, and at whatever follows one."""
        pairs = zip(self.steps, (None, *self.steps), strict=False)
        return [step for step, before in pairs if step.changes or (before is not None and before.changes)]


def parse(raw: str) -> Trace:
    """The steps in the output of ``strace``."""
    steps = []
    numbers: Counter[str] = Counter()
    for line in raw.splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        call, arguments = found[1], found[2]
        if call == END:
            break
        numbers[call] += 1
        pattern = SOMETIMES.get(call)
        changes = call in CHANGING if pattern is None else bool(pattern.search(arguments))
        steps.append(Step(call, numbers[call], f"{call}({arguments}", changes))
    return Trace(tuple(steps))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a victim ended: ``result`` is "ok", the name of an error's class, or "" when it was killed.

    ``again`` is "ok" or what was wrong when it failed and did the same once more, being asked to.
    """

    result: str
    message: str
    typed: bool
    trace: Trace
    log: str
    again: str = ""

    def hit(self, step: Step) -> bool:
        """Whether ``step`` got the injection. A loop device that others take shifts the numbers of ioctls."""
        (got, *_) = [line for line in self.log.splitlines() if "(INJECTED)" in line] or [""]
        return bool(got) and (step.call != "ioctl" or step.text.split(", ")[1] == got.split(", ")[1])


class Victims:
    """The server that victims are forked from; a context manager."""

    def __init__(self, scratch: Path, module: str = "tests.driver.victim", *arguments: str) -> None:
        self._scratch = scratch
        command = [sys.executable, "-W", "error", "-m", module, *arguments]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()

    def _ask(self, **request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def run(
        self,
        root: Path,
        operation: str,
        *arguments: Any,
        inject: str = "",
        again: bool = False,
        meanwhile: Callable[[], object] | None = None,
    ) -> Outcome:
        """Run ``operation(driver, *arguments)`` of the module under strace; ``inject`` is its expression.

        ``again``: if it fails, it is done once more. ``meanwhile`` is called when it has stopped at an
        injected SIGSTOP, and then it goes on.
        """
        log = self._scratch / "strace.log"
        said = self._scratch / "said.json"
        said.unlink(missing_ok=True)
        pid = self._ask(root=str(root), operation=operation, arguments=arguments, said=str(said), again=again)
        _wait(lambda: _state(pid) == "T", f"victim {pid} to stop")
        # Not -f: an injection counts calls per thread, and a program that the victim starts would be hit too.
        command = ["strace", "-s", "100", "-e", "raw=ioctl", "-e", "signal=none", "-o", str(log)]
        command += ["-e", f"trace={','.join(TRACED)}", "-p", str(pid)]
        if inject:
            command += ["-e", f"inject={inject}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                _wait(lambda: _traced(pid) or tracer.poll() is not None, f"strace to have {pid}")
                if tracer.poll() is not None:
                    _, complaint = tracer.communicate()
                    raise RuntimeError(f"strace: {complaint}")
                os.kill(pid, signal.SIGCONT)
                if os.WIFSTOPPED(self._ask(wait=pid)):
                    if meanwhile is not None:
                        meanwhile()
                    os.kill(pid, signal.SIGCONT)
                    self._ask(wait=pid)
                tracer.communicate(timeout=60)
            finally:
                if tracer.poll() is None:
                    os.kill(pid, signal.SIGKILL)
                    tracer.terminate()
        raw = log.read_text(errors="replace")
        answer = json.loads(said.read_text()) if said.exists() else {}
        return Outcome(
            answer.get("result", ""),
            answer.get("message", ""),
            answer.get("typed", False),
            parse(raw),
            raw,
            answer.get("again", ""),
        )

    def kill_at(self, step: Step, root: Path, operation: str, *arguments: Any) -> Outcome:
        """Run the operation and kill the process at the entry of ``step``."""
        return self.run(root, operation, *arguments, inject=f"{step.call}:signal=KILL:when={step.number}")

    def fail_at(
        self, step: Step, error: str, root: Path, operation: str, *arguments: Any, again: bool = False
    ) -> Outcome:
        """Run the operation and have the kernel answer ``error`` instead of doing ``step``."""
        inject = f"{step.call}:error={error}:when={step.number}"
        return self.run(root, operation, *arguments, inject=inject, again=again)

    def stop_at(
        self, step: Step, meanwhile: Callable[[], object], root: Path, operation: str, *arguments: Any
    ) -> Outcome:
        """Run the operation to its end, but stop it after ``step`` until ``meanwhile`` is over."""
        inject = f"{step.call}:signal=STOP:when={step.number}"
        return self.run(root, operation, *arguments, inject=inject, meanwhile=meanwhile)


def spread(steps: Sequence[Step], most: int) -> list[Step]:
    """About ``most`` of the steps, always the same: first, last, the first of each call, some between."""
    last = len(steps) - 1
    if last < most:
        return list(steps)
    kinds: dict[str, int] = {}
    for place, step in enumerate(steps):
        kinds.setdefault(step.call, place)
    evenly = {round(number * last / (most - 1)) for number in range(most)}
    return [steps[place] for place in sorted(evenly | set(kinds.values()))]


def _wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited too long for {what}")
        time.sleep(0.001)


def _field(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return line.split()[1]
    return ""


def _state(pid: int) -> str:
    return _field(pid, "State")


def _traced(pid: int) -> bool:
    return _field(pid, "TracerPid") not in ("", "0")


def lines_of(outcome: Outcome, count: int = 12) -> Iterator[str]:
    """The last calls before the end, for messages."""
    yield from outcome.log.splitlines()[-count:]
