"""The server of strace.py: forks a process for each request, which opens a driver, stops, and then acts.

Requests and answers are lines of JSON on stdin and stdout: ``{root, operation, arguments, said}`` is answered
by the pid, which is stopped soon after; ``{wait: pid}`` waits for its end. A victim that lives writes how it
went to the file ``said``.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerlimit import Driver, Error, Limit, adopt


def _open(driver: Driver | None, root: str) -> None:
    Driver(root)


def _create(driver: Driver, id: str, parent: str, size: int) -> None:
    driver.create(id, parent, limit=Limit(size) if size else None)


def _get(driver: Driver, id: str, read_only: bool = False) -> None:
    driver.get(id, read_only=read_only)


def _put(driver: Driver, id: str, read_only: bool = False) -> None:
    driver.put(id, read_only=read_only)


def _mounts(driver: Driver, id: str) -> None:
    driver.mounts(id)


def _release(driver: Driver, id: str) -> None:
    driver.release(id)


def _remove(driver: Driver, id: str) -> None:
    driver.remove(id)


def _resize(driver: Driver, id: str, size: int) -> None:
    driver.resize(id, Limit(size))


def _apply(driver: Driver, id: str, tar: str) -> None:
    with open(tar, "rb") as stream:
        driver.apply_diff(id, io.BytesIO(stream.read()))


def _diff(driver: Driver, id: str) -> None:
    with driver.diff(id) as stream:
        while stream.read(1 << 20):
            pass


def _mounted(driver: Driver, id: str) -> None:
    with driver.mounted(id) as path:
        os.stat(path)


def _cleanup(driver: Driver) -> None:
    driver.cleanup()


def _adopt(driver: Driver | None, root: str) -> None:
    adopt(root, owner_shift=100000)


OPERATIONS: dict[str, Callable[..., None]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _open, _create, _get, _put, _mounts, _release, _remove, _resize, _apply, _diff, _mounted, _cleanup,
        _adopt,
    )
}  # fmt: skip
WITHOUT_DRIVER = {"open", "adopt"}


def _act(request: dict[str, Any]) -> None:
    operation = request["operation"]
    driver = None if operation in WITHOUT_DRIVER else Driver(request["root"])
    os.kill(os.getpid(), signal.SIGSTOP)
    answer: dict[str, Any] = {"result": "ok", "typed": True}
    try:
        OPERATIONS[operation](driver, *request["arguments"])
    except Exception as error:
        trace = "".join(traceback.format_exception(error)[-12:])
        message = f"{error}\n{trace}"
        answer = {"result": type(error).__name__, "message": message, "typed": isinstance(error, Error)}
    os.sched_yield()  # the end of the operation, for the trace
    said = Path(request["said"])
    said.with_suffix(".new").write_text(json.dumps(answer))
    said.with_suffix(".new").rename(said)


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(json.dumps(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.close(1)
            try:
                _act(request)
            finally:
                os._exit(0)
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()
