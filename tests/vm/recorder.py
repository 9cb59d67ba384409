"""A pytest plugin for the run inside the guest: runs what a file lists, writes each report to a file at once.

The reports outlive a guest that hangs or dies, so the tests before that keep their results.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

CHOSEN = "LAYERLIMIT_CHOSEN"
REPORTS = "LAYERLIMIT_REPORTS"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = set(Path(os.environ[CHOSEN]).read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


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
