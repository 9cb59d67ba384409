"""Processes that carry out store operations on request, and can be told to die in the middle of one.

``python -m tests.store.worker`` serves requests for processes on the socket that is its stdin, see
:mod:`tests.store.workers`: each is forked with all modules loaded. One JSON object in, one out. ``die`` is
the number of the step at which a process kills itself. Steps are the database's statements and what Python's
audit hooks see of calls that change a file system, so they follow the code and are not placed by hand.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
from typing import Any

from layerlimit import Limit
from layerlimit.errors import Error
from layerlimit.store import Store

MESSAGE = 1 << 17
MIB = 1 << 20
PATIENCE = 5.0  # seconds
_STEPS = frozenset(
    {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chown", "os.chmod", "os.truncate", "os.utime"}
    | {"fcntl.ioctl", "sqlite3.connect", "ctypes.call_function", "os.link", "os.symlink", "shutil.rmtree"}
)


class Steps:
    """Counts steps, and dies at the one asked for."""

    def __init__(self) -> None:
        self.done = 0
        self.last = -1
        sys.addaudithook(self._see)

    def begin(self, last: int) -> None:
        """Count from 0 on, and die at ``last`` unless it is negative."""
        self.done, self.last = 0, last

    def _see(self, event: str, _: tuple[Any, ...]) -> None:
        if event in _STEPS:
            self.step()

    def step(self, _: str = "") -> None:
        if self.done == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.done += 1


class Servant:
    """A process's store, and its operations by the names of requests."""

    def __init__(self, root: str, limiter: str) -> None:
        self._root, self._limiter = root, limiter
        self._steps = Steps()
        self._store = self._open()
        self.opened = self._store.opened
        self._watch()

    def _open(self) -> Store:
        return Store(self._root, limiter=self._limiter)

    def _watch(self) -> None:
        self._store.database.connection().set_trace_callback(self._steps.step)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``value`` or ``error``; ``steps`` that it took; the ``portrait`` of the store after it."""
        operation = getattr(self, request.pop("do"))
        self._steps.begin(request.pop("die"))
        try:
            answer = {"value": operation(**request)}
        except Error as error:
            answer = {"error": type(error).__name__, "text": f"{error} ({error.code})"}
        answer["steps"] = self._steps.done
        self._steps.begin(-1)
        return answer | {"portrait": self._portrait()}

    def _portrait(self) -> dict[str, list[Any]]:
        return {
            info.name: [
                str(info.kind),
                info.parent,
                _bytes(self._store.limit_of(info)),
                info.labels,
                self._store.driver.users(info.id)[0],
            ]
            for info in self._store.ls()
        }

    def create(self, name: str, parent: str, limit: int, labels: dict[str, str]) -> None:
        self._store.create(name, parent, limit=_limit(limit), labels=labels)

    def view(self, name: str, parent: str, labels: dict[str, str]) -> None:
        self._store.view(name, parent, labels=labels)

    def commit(self, name: str, new: str, durable: bool, labels: dict[str, str]) -> None:
        self._store.commit(name, new, durable=durable, labels=labels)

    def rename(self, name: str, new: str) -> None:
        self._store.rename(name, new)

    def update(self, name: str, labels: dict[str, str]) -> None:
        self._store.update(name, labels)

    def resize(self, name: str, limit: int) -> None:
        self._store.resize(name, _limit(limit))

    def rm(self, name: str) -> None:
        self._store.rm(name)

    def mount(self, name: str) -> None:
        self._store.mount(name)

    def umount(self, name: str) -> None:
        self._store.umount(name)

    def gc(self) -> list[str]:
        return self._store.gc()

    def check(self) -> list[str]:
        """What is wrong and stays so: a dead process's mounts go some time after its end."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [f"{finding.code} {finding.message}" for finding in self._store.check(quick=True)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def reopen(self) -> list[str]:
        self._store.close()
        self._store = self._open()
        self._watch()
        return self._store.opened

    def write(self, name: str, path: str, size: int, filling: int) -> str:
        """A whole new file, synced; one that did not fit is gone again."""
        with self._store.mounted(name) as root:
            target = root / path
            try:
                target.parent.mkdir(exist_ok=True)
                with target.open("wb", buffering=0) as file:
                    data = memoryview(bytes([filling]) * size)
                    while data:
                        self._steps.step()
                        data = data[file.write(data[:MIB]) :]
                    self._steps.step()
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    target.unlink()
                return errno.errorcode[error.errno or 0]
        return "written"

    def unlink(self, name: str, path: str) -> str:
        with self._store.mounted(name) as root:
            if not (root / path).exists():
                return "absent"
            try:
                (root / path).unlink()
            except OSError as error:
                return errno.errorcode[error.errno or 0]
        return "unlinked"

    def read(self, name: str) -> dict[str, list[int]]:
        """Each file's size and the byte it is full of (-1: not one byte throughout)."""
        with self._store.mounted(name) as root:
            files = {
                str(path.relative_to(root)): path.read_bytes()
                for path in sorted(root.rglob("*"))
                if path.is_file()
            }
        return {path: [len(data), _filling(data)] for path, data in files.items()}


def _filling(data: bytes) -> int:
    if not data:
        return 0
    return data[0] if data.count(data[0]) == len(data) else -1


def _limit(size: int) -> Limit | None:
    return Limit(size) if size else None


def _bytes(limit: Limit | None) -> int:
    return limit.bytes if limit else 0


def _serve(channel: socket.socket, root: str, limiter: str) -> None:
    """Answer requests until the other end is closed."""
    servant = Servant(root, limiter)
    channel.send(json.dumps(servant.opened).encode())
    while line := channel.recv(MESSAGE):
        channel.send(json.dumps(servant.answer(json.loads(line))).encode())


def main() -> None:
    """Fork processes, and wait for their ends, until stdin's other end is closed."""
    control = socket.socket(fileno=os.dup(0))
    while True:
        line, fds, *_ = socket.recv_fds(control, MESSAGE, 1)
        if not line:
            return
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            control.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            control.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            with socket.socket(fileno=fds[0]) as channel:
                _serve(channel, request["root"], request["limiter"])
            return
        os.close(fds[0])
        control.send(json.dumps(pid).encode())


if __name__ == "__main__":
    main()
