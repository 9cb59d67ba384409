"""A store on which an operation is disturbed at one step after another, and the judgement of what is left.

The portrait of a store is everything that people or the next operation could see: names, kinds, labels,
limits, trees, and every file, mount and loop device, with ids replaced by names. What a disturbed operation
leaves must be the portrait of before it or of after it; ``check`` must find nothing; done again, it succeeds.
docs/store.md says of which operations an error may leave either, and of which it leaves the state of before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerlimit.store import Store, check_root
from tests.driver.ground import difference, picture, remove_everything
from tests.driver.strace import Outcome, Step, Trace, Victims
from tests.store.victim import WITHOUT_STORE, perform

_OWN_FILES = re.compile(r"- store\.(db|db-wal|db-shm|lock)|d lost")
_ID = re.compile(r"\bs[a-z2-7]{8}\b")

#: Operations whose errors leave the state of before or that of after: part of them cannot be taken back.
_EITHER = {"umount", "apply", "resize", "rm_and_reap"}
#: Operations that come to the same however often they are done.
_REPEATABLE = {"umount", "apply", "resize", "update", "configure"}

#: Disturbs an operation at a step.
Disturb = Callable[["Ground", Step], Outcome]


@dataclass(frozen=True)
class Case:
    """An operation of victim.py, and what is there before it.

    ``prepare`` makes that in an empty store; or, if the operation is what makes a store of a root, ``found``
    makes the root. ``damage`` then is done to the files of the closed store. ``order``: patterns of steps of
    which the first has to come before any of the second: syncs, whose lack no kill shows.
    """

    name: str
    operation: tuple[Any, ...]
    prepare: Callable[[Store], None] = lambda store: None
    found: Callable[[Path], None] | None = None
    damage: Callable[[Path], None] | None = None
    order: tuple[str, str] | None = None

    @property
    def repairs(self) -> bool:
        """The operation is a repair: after an interrupted one, another is what makes the root whole."""
        return bool(self.operation[0] == "repair")

    @property
    def finishes(self) -> bool:
        """The operation is what every opening does: nobody can see the state before it."""
        return self.operation[0] in (*WITHOUT_STORE, "gc")

    @property
    def repeatable(self) -> bool:
        """Done once more, the operation succeeds and changes nothing."""
        return self.operation[0] in _REPEATABLE

    @property
    def undone_by_an_error(self) -> bool:
        """The operation that raises has changed nothing; of others an error leaves nothing or all of it."""
        return self.operation[0] not in _EITHER


def portrait(store: Store, *, lost: bool = True) -> frozenset[str]:
    """The store as lines of text; ``lost``: with what is in ``lost/``."""
    names = {
        info.id: f"<{info.name}>" if info.name != info.id else f"<nameless {len(store.chain(info.name))}>"
        for info in store.ls()
    }
    seen = {line for line in picture(store.root) if not _OWN_FILES.fullmatch(line)}
    if not lost:
        seen = {line for line in seen if " lost/" not in line}
    lines = set(seen)
    for info in store.ls():
        measured = "measured" if info.used_bytes is not None else ""
        facts = (
            str(info.kind),
            info.parent,
            info.labels,
            info.durable,
            measured,
            info.diff_id,
            info.promised,
        )
        lines.add(f"entry {info.name}: {facts} limit {store.limit(info.name)}")
        with store.mounted(info.name) as path:
            lines |= {f"in {info.name}: {line}" for line in _tree(path)}
            if (limit := store.limit(info.name)) is not None and info.writable:
                room = os.statvfs(path)
                spare = room.f_bfree * room.f_frsize + store.usage(info.name).bytes - limit.bytes
                assert 0 <= spare < limit.bytes * 0.25, f"{info.name} has {spare} bytes over its limit"
    with store.database.reading() as db:
        for table in ("trash", "resizing", "detaching", "total", "policy"):
            lines |= {f"{table} {tuple(row)}" for row in db.execute(f"SELECT * FROM {table}")}
    return frozenset(_ID.sub(lambda found: names.get(found[0], found[0]), line) for line in lines)


def _tree(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):
        what = "directory" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        yield f"{path.relative_to(root)} {oct(path.lstat().st_mode)} {what}"


def loose_ends(root: Path) -> list[str]:
    """Rows without layers and layers without rows, before anybody opens the store and cleans up."""
    with contextlib.closing(sqlite3.connect(root / "store.db")) as db:
        named = {id for (id,) in db.execute("SELECT id FROM entry")}
        trash = {id for (id,) in db.execute("SELECT id FROM trash")}
    layers = set(os.listdir(root / "layers"))
    found = [f"layer {id} has no row" for id in layers - named - trash]
    return found + [f"row of {id} has no layer" for id in named - layers]


class Ground:
    """One root on which a case is tried again and again."""

    def __init__(self, root: Path, case: Case, victims: Victims, *, quick: bool = True) -> None:
        self.root = root
        self.case = case
        self.victims = victims
        self.quick = quick
        words = {"ROOT": str(root), "ARCHIVE": str(root.parent / "image.tar")}
        self.operation = tuple(
            words.get(word, word) if isinstance(word, str) else word for word in case.operation
        )
        self.before: frozenset[str] | None = None
        self.empty: frozenset[str] | None = None
        self.make()
        if not case.finishes:
            with Store(root) as store:
                self.before = self.look(store)
        self.trace = self._trace()

    def _trace(self) -> Trace:
        for _ in range(2):  # the first run makes what is kept: templates, directories
            outcome = self.victims.run(self.root, *self.operation)
            assert outcome.result == "ok", outcome.message
            with Store(self.root) as store:
                assert list(store.check()) == []
                self.after = self.look(store)
                self.reset(store)
            self.make(again=True)
        if self.case.order is not None:
            self._assert_order(outcome.trace, *self.case.order)
        return outcome.trace

    def _assert_order(self, trace: Trace, first: str, second: str) -> None:
        texts = [step.text for step in trace.changes]
        places = [
            next((n for n, text in enumerate(texts) if re.match(wanted, text)), -1)
            for wanted in (first, second)
        ]
        assert -1 < places[0] < places[1], f"no {first} before {second}:\n" + "\n".join(texts)

    # -- what is there before ----------------------------------------------------------------------

    def make(self, *, again: bool = False) -> None:
        """Go to before the operation, from nothing or from what :meth:`reset` left."""
        if self.case.found is not None:
            self.case.found(self.root)
        elif not again:
            with Store(self.root) as store:
                self.empty = self.look(store)
                self.case.prepare(store)
        if self.case.damage is not None:
            self.case.damage(self.root)

    def reset(self, store: Store) -> None:
        """Remove everything, see that nothing is left of it, and prepare anew."""
        store.driver.cleanup()
        while names := [info.name for info in store.ls() if not store.children(info.name)]:
            for name in names:
                store.rm(name)
        with store.database.writing() as db:
            db.execute("DELETE FROM policy")
        assert store.gc() == []
        shutil.rmtree(self.root / "lost", ignore_errors=True)
        if self.case.found is not None:
            remove_everything(store.driver)
            shutil.rmtree(self.root)
            return
        if self.empty is not None:
            found = self.look(store, [self.empty])
            assert found == self.empty, f"left when all is removed:\n{difference(found, self.empty)}"
        self.case.prepare(store)

    # -- judging -----------------------------------------------------------------------------------

    def look(
        self, store: Store, wanted: Collection[frozenset[str]] = (), patience: float = 5.0
    ) -> frozenset[str]:
        """The portrait, once it is one of ``wanted``: the kernel frees loop devices a little later."""
        deadline = time.monotonic() + patience
        while True:
            found = portrait(store, lost=not self.case.repairs)
            if not wanted:
                wanted = [found] if _at_rest(found) else []
            if found in wanted or time.monotonic() > deadline:
                return found
            time.sleep(0.01)

    def judge(self, outcome: Outcome) -> None:
        """What another process finds is a state that there may be; then it does again what was not done."""
        states = self._states(outcome)
        if self.case.repairs:
            list(check_root(self.root, repair=True, quick=True))
        with Store(self.root) as store:
            self._check(store)
            found = self.look(store, states)
            if found not in states:
                nearest = min(states, key=lambda wanted: len(found ^ wanted))
                raise AssertionError(f"{_odd(outcome)}:\n{difference(found, nearest)}\n{outcome.message}")
            again = found == self.before or (found == self.after and self.case.repeatable)
            if again:
                perform(store, *self.operation)
        with Store(self.root) as store:
            if again:
                found = self.look(store, [self.after])
                assert found == self.after, f"again:\n{difference(found, self.after)}"
            self.reset(store)
        self.make(again=True)

    def _check(self, store: Store, patience: float = 5.0) -> None:
        """``check`` finds nothing; the kernel frees loop devices a little later."""
        deadline = time.monotonic() + patience
        while findings := [f"{found.code}: {found.message}" for found in store.check(quick=self.quick)]:
            late = time.monotonic() > deadline or not all(map(_is_kept_loop, findings))
            assert not late, "; ".join(findings)

    def _states(self, outcome: Outcome) -> list[frozenset[str]]:
        """Which states an operation may leave that ended so."""
        either = [state for state in (self.before, self.after) if state is not None]
        if outcome.result == "ok" or outcome.again == "ok":
            return [self.after]
        if outcome.result == "":
            return either
        assert outcome.typed, f"{outcome.result}: {outcome.message}"
        if outcome.again:
            assert not self.case.undone_by_an_error, f"done again by the same process: {outcome.again}"
            assert not self.case.repeatable, f"done again by the same process: {outcome.again}"
            return [self.after]  # there was nothing more to do
        if not self.case.finishes:
            assert not (ends := loose_ends(self.root)), "; ".join(ends)
        return either[:1] if self.case.undone_by_an_error else either

    def attempt(self, steps: list[Step], disturb: Disturb) -> Iterator[str]:
        """Disturb each step; yields what is wrong then. After that the root is made anew."""
        here = self
        for step in steps:
            log = ""
            try:
                outcome = disturb(here, step)
                log = "\n".join(outcome.log.splitlines()[-12:])
                here.judge(outcome)
            except Exception as error:
                yield f"--- {step}\n{type(error).__name__}: {error}\n{log}"
                here = Ground(
                    here.root.with_name(here.root.name + "-"), self.case, self.victims, quick=self.quick
                )

    # -- disturbing --------------------------------------------------------------------------------

    def kill(self, step: Step) -> Outcome:
        """Kill the process at the entry of the step."""
        return self.victims.kill_at(step, self.root, *self.operation)

    def fail(self, step: Step, error: str) -> Outcome:
        """Have the kernel answer with an error."""
        return self.victims.fail_at(step, error, self.root, *self.operation)

    def fail_and_retry(self, step: Step, error: str) -> Outcome:
        """The same; then the process does it again itself, with the store that it has open."""
        return self.victims.fail_at(step, error, self.root, *self.operation, again=True)

    def interrupt(self, step: Step, fault: Callable[[], None] = lambda: None) -> Outcome:
        """Stop the process while another, with a ``fault``, opens the store: they must not notice."""
        bystander = 0
        status: int | None = None

        def bystand() -> None:
            nonlocal bystander
            bystander = os.fork()
            if bystander == 0:
                try:
                    fault()
                    Store(self.root).close()
                    os._exit(0)
                finally:
                    os._exit(1)
            nonlocal status
            status = _ended(bystander)

        outcome = self.victims.stop_at(step, bystand, self.root, *self.operation)
        if step.call == "ioctl" and not bystander:
            return outcome  # when others take the loop device that was free, the trace had one call more
        assert bystander, "did not stop"
        if status is None:
            os.waitpid(bystander, 0)
            raise AssertionError("an opening waits for what somebody else works on")
        assert status == 0, f"the other process ended with {status}"
        assert outcome.result == "ok", outcome.message
        return outcome


def _is_kept_loop(finding: str) -> bool:
    return finding.startswith("loop.kept")


def _odd(outcome: Outcome) -> str:
    if outcome.result == "ok" or outcome.again:
        return "not as after it"
    return "not as before" if outcome.result else "neither before nor after"


def _ended(pid: int, patience: float = 5.0) -> int | None:
    """The status of a child, or None when it takes too long."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    return None


def _at_rest(found: frozenset[str]) -> bool:
    """Whether every attached image is a mounted one."""
    attached = sum(line.startswith("attached ") for line in found)
    return attached == sum(line.startswith("mounted img/") for line in found)
