"""The observer: nothing but a log unless metrics are asked for."""

from __future__ import annotations

import logging
import sys
import urllib.request

import pytest

from layerlimit.daemon.observe import observe
from layerlimit.errors import NotSupported
from tests.daemon.gauges import Source


def test_metrics_are_off_by_default_and_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "layerlimit.daemon.metrics", raising=False)
    observer = observe(Source(), "")
    assert len(observer.interceptors) == 1
    with observer.endpoint():
        assert observer.metrics is None
    with pytest.raises(NotSupported, match=r"layerlimit\[serve\]"):
        observe(Source(), "127.0.0.1:0")


def test_metrics_are_served_where_they_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "layerlimit")
    with observe(Source(), "127.0.0.1:0").endpoint():
        (said,) = caplog.messages
        with urllib.request.urlopen(f"http://{said.removeprefix('metrics are at ')}/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b"layerlimit_trash_layers 7.0\n" in answer.read()
