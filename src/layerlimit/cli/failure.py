"""How a command fails: one line on stderr (or one JSON object), and a stable exit code."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final

import click

from layerlimit.cli.output import ReaderGone, encode, printable, write_error
from layerlimit.cli.settings import Settings
from layerlimit.errors import Error, from_os_error

USAGE: Final = 2
RUN_FAILED: Final = 125  # as `docker run`: below it, codes are the command's
INTERRUPTED: Final = 128 + signal.SIGINT
PIPE_CLOSED: Final = 128 + signal.SIGPIPE


class Terminated(BaseException):
    """A signal asked this process to end; raised so that everything on the way is undone."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number


@contextlib.contextmanager
def ended_by_exception() -> Iterator[None]:
    """In the block, SIGTERM and SIGHUP raise :class:`Terminated`, once; ignored signals (nohup) stay so."""

    def end(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # Python lets no other install handlers
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(error: BaseException, settings: Settings) -> int:
    """Say what went wrong, as the user asked for it, and return the exit code."""
    if settings.log_level == "debug" and isinstance(error, Exception):
        traceback.print_exception(error)
    if isinstance(error, Error):
        _say(error.message, error.hint, error.code, settings)
        return error.exit_code
    if isinstance(error, click.UsageError):
        _say_usage(error, settings)
        return RUN_FAILED if error.ctx is not None and error.ctx.info_name == "run" else USAGE
    if isinstance(error, click.ClickException):
        _say(error.format_message(), "", "error", settings)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, Terminated):
        return 128 + error.number
    if isinstance(error, ReaderGone):
        return PIPE_CLOSED
    if isinstance(error, OSError):
        return report(from_os_error(error, "do that"), settings)
    _say(
        f"unexpected {type(error).__name__}: {error}",
        "this is a bug of layerlimit; --log-level debug shows where",
        "internal",
        settings,
    )
    return 1


def _say_usage(error: click.UsageError, settings: Settings) -> None:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx is not None else "layerlimit"
    _say(message[:1].lower() + message[1:], f"see '{path} --help'", "usage", settings)


def _say(message: str, hint: str, code: str, settings: Settings) -> None:
    if settings.format == "table":
        write_error(printable(f"layerlimit: {message} ({hint})" if hint else f"layerlimit: {message}"))
    else:
        write_error(encode({"error": {"code": code, "message": message, "hint": hint}}).decode())


def note_format(arguments: Sequence[str], settings: Settings) -> None:
    """Set the format that a command line asks for, though it cannot be parsed as a whole."""
    words = list(arguments)
    if "--" in words:
        words = words[: words.index("--")]
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key == "--format":
            wanted = value if equals else "".join(words[index + 1 : index + 2])
            if wanted in ("json", "jsonl"):
                settings.format = wanted
