"""Calls through a real server: timed, counted, logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from layerlimit.daemon.watch import Watch


def _answer(request: Any, context: Any) -> Any:
    match request.key:
        case "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such layer")
        case "refuse":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a size")
        case "code":
            context.set_code(grpc.StatusCode.UNAVAILABLE)
        case "bug":
            raise RuntimeError("boom")
    return request


def _answers(request: Any, context: Any) -> Iterator[Any]:
    yield request
    yield _answer(request, context)


class Calls:
    """A server with two methods, and what the interceptor told of them."""

    def __init__(self, path: Path) -> None:
        self.told: list[tuple[str, str]] = []
        self.server = grpc.server(
            futures.ThreadPoolExecutor(2),
            interceptors=[Watch(lambda rpc, code, seconds: self.told.append((rpc, code)))],
        )
        coding: dict[str, Any] = {
            "request_deserializer": lambda raw: SimpleNamespace(**json.loads(raw)),
            "response_serializer": lambda value: json.dumps(vars(value)).encode(),
        }
        methods = {
            "Prepare": grpc.unary_unary_rpc_method_handler(_answer, **coding),
            "List": grpc.unary_stream_rpc_method_handler(_answers, **coding),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s.Snapshots", methods),))
        self.server.add_insecure_port(f"unix:{path}")
        self.server.start()
        self.channel: Any = grpc.insecure_channel(f"unix:{path}")

    def prepare(self, key: str) -> None:
        self.channel.unary_unary("/s.Snapshots/Prepare")(_request(key))

    def list(self, key: str) -> int:
        return len(list(self.channel.unary_stream("/s.Snapshots/List")(_request(key))))

    def close(self) -> None:
        self.channel.close()
        self.server.stop(None).wait()


def _request(key: str) -> bytes:
    return json.dumps({"key": key, "snapshotter": "small"}).encode()


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    made = Calls(tmp_path / "s.sock")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("key", "code", "level"),
    [
        ("fine", "OK", logging.INFO),
        ("abort", "NOT_FOUND", logging.DEBUG),
        ("refuse", "INVALID_ARGUMENT", logging.WARNING),
        ("code", "UNAVAILABLE", logging.WARNING),
        ("bug", "UNKNOWN", logging.ERROR),
    ],
)
def test_a_call_is_counted_and_logged(
    calls: Calls, caplog: pytest.LogCaptureFixture, key: str, code: str, level: int
) -> None:
    caplog.set_level(logging.DEBUG, "layerlimit")
    if code == "OK":
        calls.prepare(key)
    else:
        with pytest.raises(grpc.RpcError) as refused:
            calls.prepare(key)
        assert refused.value.code().name == code
    calls.close()  # the answer is told before the server has ended
    assert calls.told == [("Prepare", code)]
    (record,) = [each for each in caplog.records if each.name == "layerlimit.rpc"]
    assert record.levelno == level
    said = record.__dict__["layerlimit_fields"]
    assert said.pop("ms") >= 0
    assert said == {"rpc": "Prepare", "key": key, "snapshotter": "small", "code": code}


def test_a_reason_is_logged(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "layerlimit")
    with pytest.raises(grpc.RpcError):
        calls.prepare("refuse")
    calls.close()
    assert "not a size" in caplog.messages


@pytest.mark.parametrize("run", [lambda calls: calls.list("fine"), lambda calls: calls.list("abort")])
def test_a_stream_is_told_at_its_end(calls: Calls, run: Callable[[Calls], int]) -> None:
    try:
        assert run(calls) == 2
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
    calls.close()
    assert calls.told == [("List", code)]


def test_a_method_that_is_not_served_gets_no_series(calls: Calls) -> None:
    with pytest.raises(grpc.RpcError):
        calls.channel.unary_unary("/s.Snapshots/Made-Up")(b"")
    calls.close()
    assert calls.told == []
