"""Faults for the store, to see that the enumeration of crash.py catches each of them (test_mutants.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

from layerlimit import Driver, Limit
from layerlimit.driver.holds import ProcessHold
from layerlimit.store import Store, database
from layerlimit.store.reaper import Reaper


@dataclass(frozen=True)
class Mutant:
    """A fault in the store: what ``name`` says, made in the process by :meth:`apply`.

    ``case`` is the operation whose enumeration catches it; ``by`` how: its ``order`` of steps, a ``kill``, an
    ``error``, one after which the same process does a ``retry``, or a ``stop`` while a process with the fault
    opens the store; ``says`` is in the report.
    """

    name: str
    case: str
    by: str
    says: str
    target: Any
    attribute: str
    fault: Callable[..., Any]

    def apply(self) -> None:
        """Put the fault into this process, for good."""
        patch.object(self.target, self.attribute, self.fault).start()


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _driver_first(self: Store, name: str, limit: Limit) -> None:
    with self._holding(name) as info:
        self.driver.resize(info.id, limit)
        with self.database.writing() as db:
            db.execute("UPDATE entry SET promised = ? WHERE id = ?", (limit.bytes, info.id))


_add = Store._add
_forget = Store._forget


def _trash_last(
    self: Store, *arguments: Any, fill: Callable[[str], Any] | None = None, **options: Any
) -> Any:
    """Without a row of trash from the layer's creation until it is filled."""

    def late(id: str) -> Any:
        assert fill is not None
        with self.database.writing() as db:
            db.execute("DELETE FROM trash WHERE id = ?", (id,))
        found = fill(id)
        with self.database.writing() as db:
            db.execute("INSERT INTO trash VALUES (?)", (id,))
        return found

    return _add(self, *arguments, fill=fill and late, **options)


def _layer_first(self: Store, name: str) -> None:
    self.driver.remove(self.stat(name).id)
    _forget(self, name)


@contextlib.contextmanager
def _unlocked(*_: Any) -> Iterator[bool]:
    yield True


def _blind(self: Reaper, *_: Any, **__: Any) -> list[str]:
    with patch.object(self._locks, "attempt", _unlocked):
        return _run(self)


_run = Reaper.run
_close = Driver.close


def _close_as_if_done(self: Driver, *, failed: bool = False) -> None:
    _close(self)


def _keep_what_stays(self: ProcessHold) -> None:
    if self._fd >= 0:
        os.unlink(self._path)
        os.close(self._fd)
        self._fd = -1


MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "commit does not sync a limited layer",
            "commit-limited",
            "order",
            "no fsync",
            Driver,
            "sync",
            _nothing,
        ),
        Mutant(
            "commit does not sync a plain layer",
            "commit-plain",
            "order",
            "no syncfs",
            Driver,
            "sync",
            _nothing,
        ),
        Mutant("resize promises last", "resize", "kill", "promised.mismatch", Store, "resize", _driver_first),
        Mutant(
            "a failed create is not undone",
            "create-limited",
            "error",
            "has no row",
            Reaper,
            "take_back",
            _nothing,
        ),
        Mutant("an import is trash too late", "import-tar", "kill", "lost/", Store, "_add", _trash_last),
        Mutant("rm deletes the layer first", "rm", "kill", "layer.missing", Store, "_forget", _layer_first),
        Mutant("the reaper sees no locks", "import-tar", "stop", "", Reaper, "run", _blind),
        Mutant(
            "a failed commit stays in the log",
            "rename",
            "error",
            "not as before",
            database,
            "_overwrite",
            _nothing,
        ),
        Mutant(
            "a failed opening has swept",
            "open-left-over",
            "error",
            "layer.unnamed",
            Driver,
            "close",
            _close_as_if_done,
        ),
        Mutant(
            "a rebuild leaves its log behind",
            "rebuild-damaged",
            "error",
            "<nameless",
            import_module("layerlimit.store.rebuild"),  # the package's name "rebuild" is a function
            "_fold",
            _nothing,
        ),
        Mutant(
            "a hold stays with its file",
            "apply-plain",
            "retry",
            "done again by the same process",
            ProcessHold,
            "close",
            _keep_what_stays,
        ),
    )
}
