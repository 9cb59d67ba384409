"""Lines of the log: JSON for machines, text for people."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest

from layerlimit.daemon.logs import fields, logging_to

HOSTILE = 'a"\n{"level": "error"}\x1b[2J\u2028'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    log = logging.getLogger("layerlimit.rpc")
    with logging_to(out, level="info", format="auto"):
        log.info("served %s", HOSTILE, extra=fields(rpc="Prepare", key=HOSTILE, code=None, ms=1.5))
        log.debug("not this")
        try:
            raise ValueError("boom")
        except ValueError:
            log.exception("failed")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "info",
        "message": f"served {HOSTILE}",
        "rpc": "Prepare",
        "key": HOSTILE,
        "ms": 1.5,
    }
    assert second["level"] == "error"
    assert "ValueError: boom" in second["trace"]


@pytest.mark.parametrize(("stream", "format"), [(Terminal(), "auto"), (io.StringIO(), "text")])
def test_text_is_one_line_that_cannot_talk_to_the_terminal(stream: io.StringIO, format: str) -> None:
    with logging_to(stream, level="debug", format=format):
        logging.getLogger("layerlimit").debug("served", extra=fields(key=HOSTILE))
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert " debug served key=a" in line


def test_what_logged_before_logs_again() -> None:
    logger = logging.getLogger("layerlimit")
    handlers, level = list(logger.handlers), logger.level
    with logging_to(io.StringIO(), level="error", format="json"):
        assert logger.level == logging.ERROR
    assert (logger.handlers, logger.level) == (handlers, level)
