"""The daemon's log: one line per record on stderr, JSON for machines or text for people.

A record may carry fields: ``log.info("served", extra=fields(rpc="Prepare", ms=1.2))``. Names and keys in them
come from clients; JSON escapes them, and the text form shows their control characters as ``\\xNN``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

LOGGER: Final = "layerlimit"
_FIELDS: Final = "layerlimit_fields"


def fields(**values: object) -> dict[str, dict[str, object]]:
    """The ``extra`` of a log call that adds fields to its line; those that are None are left out."""
    return {_FIELDS: {key: value for key, value in values.items() if value is not None}}


@contextlib.contextmanager
def logging_to(stream: TextIO, *, level: str, format: str) -> Iterator[None]:
    """In the block, log to ``stream`` as ``format`` (json, text, auto) says, in place of other handlers."""
    logger = logging.getLogger(LOGGER)
    handlers, before = list(logger.handlers), logger.level
    as_text = format == "text" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines() if as_text else JsonLines())
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(before)


class JsonLines(logging.Formatter):
    """``{"time": …, "level": …, "message": …, <fields>}``; the time is UTC to the millisecond."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info and record.exc_info[0]:
            line["trace"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """``12:00:00.123 info message rpc=Prepare ms=1.2``."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record)[11:23], record.levelname.lower(), record.getMessage()]
        words += [f"{key}={value}" for key, value in _fields(record).items()]
        line = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in " ".join(words)
        )
        if record.exc_info and record.exc_info[0]:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = getattr(record, _FIELDS, {})
    return found
