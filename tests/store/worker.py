"""A process that carries out store operations on request, and can be told to die in the middle of one.

One JSON object a line in, one out. ``die`` is the number of the durable step at which the process kills
itself: steps are what Python's audit hooks see of calls that change a file system or a database, so they
follow the code and are not placed by hand.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from layerlimit import Limit
from layerlimit.errors import Error
from layerlimit.store import Store

_STEPS = frozenset(
    {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chown", "os.chmod", "os.truncate", "os.utime"}
    | {"fcntl.ioctl", "sqlite3.connect", "ctypes.call_function", "os.link", "os.symlink", "shutil.rmtree"}
)


class Steps:
    """Counts steps, and dies at the one asked for."""

    def __init__(self) -> None:
        self.left = -1
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left < 0 or event not in _STEPS:
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def perform(store: Store, request: dict[str, Any]) -> Any:
    """Carry out one request and return what the test compares."""
    name, parent = request.get("name", ""), request.get("parent", "")
    match request["do"]:
        case "create":
            limit = Limit(request["limit"]) if request["limit"] else None
            store.create(name, parent, limit=limit)
        case "view":
            store.view(name, parent)
        case "write":
            with store.mounted(name) as root:
                return _write(root / request["path"], request["size"], request["seed"])
        case "unlink":
            with store.mounted(name) as root:
                (root / request["path"]).unlink()
        case "read":
            with store.mounted(name) as root:
                return _tree(root)
        case "commit":
            store.commit(name, request["new"], durable=request["durable"])
        case "rename":
            store.rename(name, request["new"])
        case "resize":
            store.resize(name, Limit(request["limit"]))
        case "mount":
            store.mount(name)
        case "umount":
            store.umount(name)
        case "rm":
            store.rm(name)
        case "gc":
            return store.gc()
        case "ls":
            return {info.name: [str(info.kind), info.parent, _limit(store, info.name)] for info in store.ls()}
        case "check":
            return [f"{f.code} {f.message}" for f in store.check(quick=True)]
        case other:
            raise AssertionError(other)
    return None


def _limit(store: Store, name: str) -> int:
    limit = store.limit(name)
    return limit.bytes if limit else 0


def _write(path: Path, size: int, seed: int) -> str:
    """Write a whole file, synced; ``"ENOSPC"`` when it did not fit, and then it is gone again."""
    data = bytes([seed]) * size
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        return os.strerror(error.errno or 0)
    return "written"


def _tree(root: Path) -> dict[str, list[int]]:
    """Each file's size and the byte it is full of (-1: not one byte throughout)."""
    found = {}
    for path in sorted(root.iterdir()):
        data = path.read_bytes()
        found[path.name] = [
            len(data),
            data[0] if data and data == data[:1] * len(data) else -1 if data else 0,
        ]
    return found


def main() -> None:
    """Serve requests until standard input ends."""
    steps = Steps()
    with Store(sys.argv[1]) as store:
        print("open", flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            steps.left = request.pop("die", -1)
            try:
                answer: dict[str, Any] = {"value": perform(store, request)}
            except Error as error:
                answer = {"error": type(error).__name__, "code": error.code, "text": str(error)}
            steps.left = -1
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
