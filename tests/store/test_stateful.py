"""The store against a model that knows names, trees and limits, with several processes and crashes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.store.workers import Died, Worker

pytestmark = pytest.mark.lane("root", "overlay", "loop")

MIB = 1 << 20
NAMES = ["a", "b:c", "d/e f", "g", "h"]
PATHS = ["one", "two", "three"]
SIZES = [0, 5000, MIB, 3 * MIB, 5 * MIB]
LIMITS = [0, 8 * MIB]
BLOCK = 4096
SLACK = 1.01  # of the limit: what a fresh layer may have over what was asked


@dataclass
class Entry:
    """What the model knows of a layer."""

    kind: str
    parent: str
    limit: int
    own: dict[str, tuple[int, int]] = field(default_factory=dict)  # path → size and filling
    hidden: set[str] = field(default_factory=set)
    mounts: int = 0


class Model(RuleBasedStateMachine):
    """Rules do the same to the store, through one of three processes, and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="store-"))
        self.workers: list[Worker] = []
        self.entries: dict[str, Entry] = {}
        self.seed = 0

    @initialize()
    def begin(self) -> None:
        self.workers = [Worker(self.root / "root") for _ in range(3)]

    def teardown(self) -> None:
        for name, entry in self.entries.items():
            for _ in range(entry.mounts):
                self.workers[0].ask("umount", name=name)
        while self.entries:
            for name in [n for n in self.entries if not self.children(n)]:
                assert "value" in self.workers[0].ask("rm", name=name)
                del self.entries[name]
        if self.workers:
            assert self.workers[0].ask("gc") == {"value": []}
            assert self.workers[0].ask("check") == {"value": []}
            self._assert_nothing_left()
        for worker in self.workers:
            worker.close()
        shutil.rmtree(self.root)

    def _assert_nothing_left(self) -> None:
        root = self.root / "root"
        assert str(root) not in Path("/proc/self/mountinfo").read_text()
        for directory in (
            "layers",
            "meta",
            "diff",
            "work",
            "mnt",
            "img",
            "containers_quota",
            "holds",
            "trash",
        ):
            assert os.listdir(root / directory) == [], directory

    # -- the model ---------------------------------------------------------------------------------

    def children(self, name: str) -> list[str]:
        return [other for other, entry in self.entries.items() if entry.parent == name]

    def tree(self, name: str) -> dict[str, tuple[int, int]]:
        entry = self.entries[name]
        below = self.tree(entry.parent) if entry.parent else {}
        return {k: v for k, v in below.items() if k not in entry.hidden} | entry.own

    def used(self, entry: Entry) -> int:
        return sum(-(-size // BLOCK) * BLOCK for size, _ in entry.own.values())

    # -- asking ------------------------------------------------------------------------------------

    def ask(
        self, who: int, do: str, *, die: int = -1, done: Callable[[], bool] | None = None, **request: Any
    ) -> Any:
        """The answer, or None when the process died; ``done`` tells whether it had finished its work."""
        try:
            answer = self.workers[who].ask(do, die=die, **request)
        except Died:
            self.workers[who].close()
            self.workers[who] = Worker(self.root / "root")
            assert done is not None, "died without having been told to"
            return {"value": None} if done() else None
        return answer

    def names(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = self.workers[0].ask("ls")["value"]
        return found

    # -- rules -------------------------------------------------------------------------------------

    who = st.integers(0, 2)
    die = st.one_of(st.just(-1), st.just(-1), st.integers(0, 60))

    @rule(
        who=who,
        die=die,
        name=st.sampled_from(NAMES),
        parent=st.sampled_from(["", *NAMES]),
        limit=st.sampled_from(LIMITS),
    )
    def create(self, who: int, die: int, name: str, parent: str, limit: int) -> None:
        answer = self.ask(
            who, "create", die=die, name=name, parent=parent, limit=limit,
            done=lambda: name in self.names() and name not in self.entries,
        )  # fmt: skip
        if answer is None:
            return
        if name in self.entries:
            assert answer.get("error") == "AlreadyExists", answer
        elif parent and parent not in self.entries:
            assert answer.get("error") == "NotFound", answer
        elif parent and self.entries[parent].kind != "committed":
            assert answer.get("error") == "InvalidArgument", answer
        else:
            assert "value" in answer, answer
            self.entries[name] = Entry("active", parent, limit)

    @rule(
        who=who,
        die=die,
        name=st.sampled_from(NAMES),
        path=st.sampled_from(PATHS),
        size=st.sampled_from(SIZES),
    )
    def write(self, who: int, die: int, name: str, path: str, size: int) -> None:
        entry = self.entries.get(name)
        if entry is None or entry.kind != "active":
            return
        self.seed = self.seed % 250 + 1
        old = entry.own.pop(path, None)
        need = self.used(entry) + -(-size // BLOCK) * BLOCK
        answer = self.ask(who, "write", name=name, path=path, size=size, seed=self.seed)
        hidden = {path} if entry.parent and path in self.tree(entry.parent) else set()
        if answer["value"] == "written":
            assert not entry.limit or need <= entry.limit * SLACK, "written past the limit"
            entry.own[path] = (size, self.seed if size else 0)
        else:
            assert answer["value"] == "No space left on device", answer
            assert entry.limit, "no limit was asked for"
            assert need > entry.limit - 64 * BLOCK, f"refused at {need} of {entry.limit}"
            if old is not None or hidden:
                entry.hidden |= hidden

    @rule(who=who, name=st.sampled_from(NAMES))
    def unlink(self, who: int, name: str) -> None:
        entry = self.entries.get(name)
        if entry is None or entry.kind != "active" or not self.tree(name):
            return
        path = min(self.tree(name))
        assert self.ask(who, "unlink", name=name, path=path) == {"value": None}
        entry.own.pop(path, None)
        if entry.parent and path in self.tree(entry.parent):
            entry.hidden.add(path)

    @rule(who=who, die=die, name=st.sampled_from(NAMES), new=st.sampled_from(NAMES), durable=st.booleans())
    def commit(self, who: int, die: int, name: str, new: str, durable: bool) -> None:
        answer = self.ask(
            who, "commit", die=die, name=name, new=new, durable=durable,
            done=lambda: self.names().get(new, [""])[0] == "committed"
            and self.entries.get(new, Entry("", "", 0)).kind != "committed",
        )  # fmt: skip
        if answer is None:
            return
        if name not in self.entries:
            assert answer.get("error") == "NotFound", answer
        elif self.entries[name].kind != "active":
            assert answer.get("error") == "InvalidArgument", answer
        elif new in self.entries:
            assert answer.get("error") == "AlreadyExists", answer
        elif self.entries[name].mounts:
            assert answer.get("error") == "Busy", answer
        else:
            assert "value" in answer, answer
            entry = self.entries.pop(name)
            entry.kind = "committed"
            self.entries[new] = entry

    @rule(who=who, die=die, name=st.sampled_from(NAMES), new=st.sampled_from(NAMES))
    def rename(self, who: int, die: int, name: str, new: str) -> None:
        answer = self.ask(
            who, "rename", die=die, name=name, new=new,
            done=lambda: name in self.entries and new not in self.entries and name not in self.names(),
        )  # fmt: skip
        if answer is None:
            return
        if name not in self.entries:
            assert answer.get("error") == "NotFound", answer
        elif new in self.entries:
            assert answer.get("error") == "AlreadyExists", answer
        else:
            assert "value" in answer, answer
            self.entries[new] = self.entries.pop(name)
            for entry in self.entries.values():
                if entry.parent == name:
                    entry.parent = new

    @rule(who=who, die=die, name=st.sampled_from(NAMES), limit=st.sampled_from([6 * MIB, 12 * MIB, 16 * MIB]))
    def resize(self, who: int, die: int, name: str, limit: int) -> None:
        answer = self.ask(
            who, "resize", die=die, name=name, limit=limit,
            done=lambda: name in self.entries and self.names()[name][2] == limit != self.entries[name].limit,
        )  # fmt: skip
        if answer is None:
            return
        entry = self.entries.get(name)
        if entry is None:
            assert answer.get("error") == "NotFound", answer
        elif entry.kind != "active" or not entry.limit or limit < entry.limit:
            assert answer.get("error") == "InvalidArgument", answer
        elif entry.mounts and answer.get("error") == "NotSupported":
            assert answer["code"] == "resize.online", answer
        else:
            assert "value" in answer, answer
            entry.limit = limit

    @rule(who=who, name=st.sampled_from(NAMES))
    def mount(self, who: int, name: str) -> None:
        if name in self.entries and self.entries[name].kind == "active":
            assert self.ask(who, "mount", name=name) == {"value": None}
            self.entries[name].mounts += 1

    @precondition(lambda self: any(entry.mounts for entry in self.entries.values()))
    @rule(who=who)
    def umount(self, who: int) -> None:
        name = next(name for name, entry in self.entries.items() if entry.mounts)
        assert self.ask(who, "umount", name=name) == {"value": None}
        self.entries[name].mounts -= 1

    @rule(who=who, die=die, name=st.sampled_from(NAMES))
    def rm(self, who: int, die: int, name: str) -> None:
        answer = self.ask(
            who, "rm", die=die, name=name, done=lambda: name in self.entries and name not in self.names()
        )
        if answer is None:
            return
        if name not in self.entries:
            assert answer.get("error") == "NotFound", answer
        elif self.children(name) or self.entries[name].mounts:
            assert answer.get("error") == "Busy", answer
        else:
            assert "value" in answer, answer
            del self.entries[name]

    @rule(who=who, die=die)
    def gc(self, who: int, die: int) -> None:
        answer = self.ask(who, "gc", die=die, done=lambda: True)
        assert answer in (None, {"value": []}, {"value": None}), answer

    @rule(who=who, name=st.sampled_from(NAMES))
    def read(self, who: int, name: str) -> None:
        if name in self.entries:
            answer = self.ask(who, "read", name=name)
            assert answer == {"value": {k: list(v) for k, v in self.tree(name).items()}}, answer

    @invariant()
    def names_agree(self) -> None:
        if self.workers:
            found = self.names()
            assert found.keys() == self.entries.keys()
            for name, entry in self.entries.items():
                assert found[name] == [entry.kind, entry.parent, entry.limit], name

    @rule(who=who)
    def check(self, who: int) -> None:
        answer = self.ask(who, "check")
        assert answer == {"value": []}, answer


def test_store_agrees_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=int(os.environ.get("LAYERLIMIT_EXAMPLES", "15")),
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
