"""A pytest plugin for the run inside the guest: writes each report to a file as soon as there is one.

The file outlives a guest that hangs or dies, so the tests before that keep their results.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

REPORTS = "LAYERLIMIT_REPORTS"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    row = {
        "test": report.nodeid,
        "when": report.when,
        "outcome": report.outcome,
        "seconds": report.duration,
        "expected": getattr(report, "wasxfail", None),
        "text": report.longreprtext,
        "reason": report.longrepr[2] if isinstance(report.longrepr, tuple) else "",
        "output": "\n".join(content for _, content in report.sections),
    }
    with Path(os.environ[REPORTS]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
