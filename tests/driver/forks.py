"""Serves victims (strace.py): forks a process for each request, which gets ready, stops, and then acts.

Requests and answers are lines of JSON on stdin and stdout: a request with ``operation`` is answered by the
pid of the victim, which is stopped soon after; ``{wait: pid}`` is answered by its status, once it has ended
or stopped again. A victim that lives writes how it went to the file that its request calls ``said``; one
that failed does the same once more before that, if its request has ``again``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerlimit import Error

#: Prepares a request in its own process; what it returns is the operation.
Ready = Callable[[dict[str, Any]], Callable[[], None]]


def _act(request: dict[str, Any], ready: Ready) -> None:
    operation = ready(request)
    os.kill(os.getpid(), signal.SIGSTOP)
    answer = _attempt(operation)
    os.sched_yield()  # the end of the operation, for the trace
    if request.get("again") and answer["result"] != "ok":
        second = _attempt(operation)
        answer["again"] = second.get("message", "ok")
    said = Path(request["said"])
    said.with_suffix(".new").write_text(json.dumps(answer))
    said.with_suffix(".new").rename(said)


def _attempt(operation: Callable[[], None]) -> dict[str, Any]:
    try:
        operation()
    except Exception as error:
        trace = "".join(traceback.format_exception(error)[-12:])
        return {
            "result": type(error).__name__,
            "message": f"{error}\n{trace}",
            "typed": isinstance(error, Error),
        }
    return {"result": "ok", "typed": True}


def serve(ready: Ready) -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], os.WUNTRACED)
            print(json.dumps(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.close(1)
            try:
                _act(request, ready)
            finally:
                os._exit(0)
        print(json.dumps(pid), flush=True)
