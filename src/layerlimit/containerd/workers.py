"""The threads that answer calls: a few, and more only while those are stuck.

Threads of Python take turns at one lock, and give it up at each system call: with 32 that all have work, a
start took 600 switches between threads and a third more processor time than it takes with two. But a call
may take long. One that knows it, since it unpacks a layer, gives its place to another thread. Others wait for
a disk or a repair: when no call was begun for a moment while some are queued, a thread helps until none is
queued. The moment is long: while a hundred containers start, threads get a processor late, and more of them
would not help.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from enum import Enum, auto
from queue import Empty, SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

_MOMENT: Final = 0.2  # seconds

P = ParamSpec("P")
T = TypeVar("T")


_own = threading.local()  # of a thread: ``workers`` it belongs to, and whether it ``serves``


def give_place() -> None:
    """Say that the call of this thread takes long: until it ends, another answers in place of this one.

    Nothing happens in a thread that is none of :class:`Workers`, or when those are all there may be.
    """
    if getattr(_own, "serves", False) and _own.workers._bring(_Role.SERVE):
        _own.serves = False


class _Role(Enum):
    SERVE = auto()
    HELP = auto()


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
        self._begun = object()  # another one with each call that is begun
        self._queued = threading.Event()
        self._idle = threading.Semaphore(0)  # threads that wait for one of the roles
        self._roles: SimpleQueue[_Role | None] = SimpleQueue()
        self._ended = False
        self._most = most
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._watcher = threading.Thread(target=self._watch, name="call-watch")
        for _ in range(few):
            self._bring(_Role.SERVE)
        self._watcher.start()

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
        if wait:
            self._watcher.join()
            for thread in self._threads:
                thread.join()

    def _bring(self, role: _Role) -> bool:
        """Let a thread that waits, or a new one, play ``role``; False when there are as many as may be."""
        if self._idle.acquire(blocking=False):
            self._roles.put(role)
            return True
        with self._starting:
            if len(self._threads) >= self._most:
                return False
            thread = threading.Thread(target=self._live, args=[role], name=f"call-{len(self._threads)}")
            self._threads.append(thread)
        thread.start()
        return True

    def _live(self, role: _Role | None) -> None:
        _own.workers = self
        while role is not None:
            if role is _Role.SERVE:
                self._serve()
            else:
                self._help()
            self._idle.release()
            role = self._roles.get()

    def _serve(self) -> None:
        _own.serves = True
        while _own.serves and (call := self._calls.get()) is not None:
            self._run(call)
            del call  # or it lives on, with its answer, for as long as we wait
        _own.serves = False

    def _help(self) -> None:
        while (call := self._next()) is not None:
            self._run(call)
            del call

    def _run(self, call: _Call) -> None:
        self._begun = object()
        call.run()

    def _next(self) -> _Call | None:
        try:
            return self._calls.get_nowait()
        except Empty:
            return None

    def _watch(self) -> None:
        while not (self._ended and self._calls.empty()):
            self._queued.wait()
            self._queued.clear()
            begun = self._begun
            time.sleep(_MOMENT)
            if self._calls.empty():
                continue
            self._queued.set()
            if self._begun is begun:
                self._bring(_Role.HELP)
        with self._starting:
            self._most = 0  # no more of them
            for _ in self._threads:
                self._roles.put(None)
                # One that waits for calls sees one; so may, before, one that helped or took a place.
                self._calls.put(None)
                self._calls.put(None)
