"""The threads that answer calls: that none waits for ever behind one that is stuck."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from layerlimit.containerd import workers as module
from layerlimit.containerd.workers import Workers, give_place

FEW, MOST, SECONDS = 2, 6, 30


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(FEW, MOST) as workers:
        yield workers


def test_answers_and_errors_arrive(workers: Workers) -> None:
    assert [call.result(SECONDS) for call in [workers.submit(divmod, n, 7) for n in range(100)]] == [
        divmod(n, 7) for n in range(100)
    ]
    with pytest.raises(ZeroDivisionError):
        workers.submit(divmod, 1, 0).result(SECONDS)


def test_others_join_while_calls_are_stuck_and_come_back(workers: Workers) -> None:
    for _ in range(2):  # those that joined wait meanwhile, and are needed again
        together = threading.Barrier(MOST)
        calls = [workers.submit(together.wait, SECONDS) for _ in range(MOST)]
        assert sorted(call.result(SECONDS) for call in calls) == list(range(MOST))


def test_a_long_call_gives_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody has to help, and as many serve afterwards as before."""
    monkeypatch.setattr(module, "_MOMENT", 2)
    give_place()  # nothing to give
    go_on = threading.Event()

    def long() -> bool:
        give_place()
        give_place()  # once is enough
        return go_on.wait(SECONDS)

    workers = Workers(FEW, MOST)
    try:
        for _ in range(3):
            go_on.clear()
            calls = [workers.submit(long) for _ in range(MOST - FEW)]
            together = threading.Barrier(FEW)
            for call in [workers.submit(together.wait, SECONDS) for _ in range(FEW)]:
                call.result(SECONDS)
            go_on.set()
            assert all(call.result(SECONDS) for call in calls)
        many = threading.Barrier(FEW + 1)
        for call in [workers.submit(many.wait, 0.5) for _ in range(FEW + 1)]:
            with pytest.raises(threading.BrokenBarrierError):
                call.result(SECONDS)
    finally:
        workers.shutdown()


def test_no_more_join_than_allowed(workers: Workers) -> None:
    together, names = threading.Barrier(MOST), set()

    def call() -> None:
        together.wait(SECONDS)
        names.add(threading.current_thread().name)

    for waiting in [workers.submit(call) for _ in range(3 * MOST)]:
        waiting.result(SECONDS)
    assert len(names) == MOST


def test_ends_when_what_was_queued_is_done() -> None:
    before = set(threading.enumerate())
    workers = Workers(FEW, MOST)
    together = threading.Barrier(MOST)
    calls = [workers.submit(together.wait, SECONDS) for _ in range(2 * MOST)]
    workers.shutdown()
    assert all(call.done() for call in calls)
    assert set(threading.enumerate()) == before
    with pytest.raises(RuntimeError):
        workers.submit(print)


def test_nobody_takes_a_place_after_the_end() -> None:
    """Or a thread would wait for calls for ever, and the process with it."""
    before = set(threading.enumerate())
    workers = Workers(1, 3)
    begun, go_on = threading.Event(), threading.Event()

    def long() -> bool:
        begun.set()
        went_on = go_on.wait(SECONDS)
        give_place()
        return went_on

    running = workers.submit(long)
    assert begun.wait(SECONDS)
    workers.shutdown(wait=False)
    workers._watcher.join(SECONDS)
    go_on.set()
    assert running.result(SECONDS)
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)
    assert set(threading.enumerate()) == before


def test_calls_can_be_dropped_at_the_end() -> None:
    workers = Workers(1, 1)
    begun, go_on = threading.Event(), threading.Event()

    def stay() -> bool:
        begun.set()
        return go_on.wait(SECONDS)

    running = workers.submit(stay)
    assert begun.wait(SECONDS)
    dropped = workers.submit(stay)
    workers.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    assert running.result(SECONDS)
    assert dropped.cancelled()
