"""What the caller tells the processes it starts, and what they answer.

Named tuples here and below rather than data classes: importing ``dataclasses`` costs the monitor more time
than all it does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn

FAILED: Final = 125  # exit codes of `docker run`
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SIGNALLED: Final = 128  # plus the signal's number


class Spec(NamedTuple):
    """One run; the bytes are as the kernel takes them."""

    root: bytes
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]  # KEY=VALUE, only what was asked for
    user: bytes
    workdir: bytes
    hostname: bytes  # empty: the host's
    read_only: bool
    terminal: (
        bytes  # the terminal that the command gets as its own; empty: none, it gets a session of its own
    )
    term: bytes  # $TERM for it
    caller: int  # process id

    def dump(self) -> bytes:
        return json.dumps(_map(self._asdict(), lambda value: value.decode("latin-1"), bytes)).encode()

    @classmethod
    def load(cls, raw: bytes) -> Spec:
        return cls(**_map(json.loads(raw), lambda value: value.encode("latin-1"), str))


def _map(fields: dict[str, Any], convert: Callable[[Any], Any], kind: type) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(one(item) for item in value)
        return convert(value) if isinstance(value, kind) else value

    return {key: one(value) for key, value in fields.items()}


class Failure(Exception):
    """Why the command cannot be started, in a form that reaches the caller.

    Either a whole ``message`` of a ``kind`` ("invalid", "unsupported", "error"), or, with an errno as
    ``code``, what was being done when the kernel answered so.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "invalid",
        code: int = 0,
        text: str = "",
        path: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.fields = {
            "doing": message,
            "kind": kind,
            "code": code,
            "text": text,
            "path": path,
            "hint": hint,
        }


@contextlib.contextmanager
def doing(what: str, *, hint: str = "") -> Iterator[None]:
    """Turns an :class:`OSError` of the block into a :class:`Failure` that says what was being done."""
    try:
        yield
    except OSError as error:
        path = "" if error.filename is None else os.fsdecode(error.filename)
        text = error.strerror or str(error)
        raise Failure(what, code=error.errno or errno.EIO, text=text, path=path, hint=hint) from error


READY: Final = (
    b"ready\n"  # the last word before execve; no answer but this means that the command was started
)


def guarded(status: int, action: Callable[[], NoReturn]) -> NoReturn:
    """Runs ``action``; whatever it raises is written to ``status``, and the process ends with :data:`FAILED`.

    No traceback is printed: that would open source files, by names that mean other files inside the root.
    """
    try:
        action()
    except Failure as failure:
        os.write(status, json.dumps(failure.fields).encode() + b"\n")
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
        found = Failure(f"the sandbox failed: {type(error).__name__} at {where}: {error}", kind="error")
        os.write(status, json.dumps(found.fields).encode() + b"\n")
    finally:
        os._exit(FAILED)
