"""The threads that answer calls: a few, and more only while those are stuck.

Threads of Python take turns at one lock, and give it up at each system call: with 32 that all have work, a
start took 600 switches between threads and half again the processor time that it takes with two. But a call
may wait, for a disk, a repair or an unpacking: when no call was begun for a moment while some are queued,
another thread joins, until none is queued. The moment is long: while a hundred containers start, threads get
a processor late, and more of them would not help.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

_MOMENT: Final = 0.2  # seconds

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    answer: Future[Any]
    function: Callable[[], Any]

    def run(self) -> None:
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.function())
        except BaseException as error:
            self.answer.set_exception(error)


class Workers(Executor):
    """``few`` threads, and up to ``most`` while those are stuck.

    All are kept until the end: each has a connection to the database.
    """

    def __init__(self, few: int, most: int) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._last: _Call | None = None  # that was begun
        self._queued = threading.Event()
        self._help = threading.Semaphore(0)
        self._idle = threading.Semaphore(0)  # helpers that wait for _help
        self._ended = False
        self._most = most
        self._threads: list[threading.Thread] = []
        for _ in range(few):
            self._start(self._serve)
        self._start(self._watch)

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> Future[T]:
        """Queue a call; RuntimeError after :meth:`shutdown`."""
        if self._ended:
            raise RuntimeError("the threads have ended")
        call = _Call(Future(), lambda: function(*arguments, **options))
        self._calls.put(call)
        if not self._queued.is_set():
            self._queued.set()
        return call.answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end, after the calls that are queued unless those are cancelled."""
        while cancel_futures and (call := self._next()) is not None:
            call.answer.cancel()
        self._ended = True
        self._queued.set()
        for thread in self._threads if wait else ():
            thread.join()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"call-{len(self._threads)}")
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            self._last = call
            call.run()
            del call  # or it lives on, with its answer, for as long as we wait

    def _serve_on(self) -> None:
        """A helper: until none is queued, and again when there is need."""
        while True:
            while (call := self._next()) is not None:
                self._last = call
                call.run()
                del call
            if self._ended:
                return
            self._idle.release()
            self._help.acquire()

    def _next(self) -> _Call | None:
        try:
            return self._calls.get_nowait()
        except Empty:
            return None

    def _watch(self) -> None:
        while not (self._ended and self._calls.empty()):
            self._queued.wait()
            self._queued.clear()
            last = self._last
            time.sleep(_MOMENT)
            if self._calls.empty():
                continue
            self._queued.set()
            if self._last is not last:
                continue
            if self._idle.acquire(blocking=False):
                self._help.release()
            elif len(self._threads) <= self._most:  # this one is among them
                self._start(self._serve_on)
        for _ in self._threads:
            self._calls.put(None)
            self._help.release()
