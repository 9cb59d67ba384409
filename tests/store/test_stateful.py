"""The store against a model that knows names, trees, limits and holds, with several processes and crashes.

Each step asks one of three processes for an operation, which may be told to die in the middle of it; a new
process then takes its place. After each step all that can be seen of the store has to be what the model
foretells, and after a death what it foretells of before the operation or of after it. How many steps were
done, and that each operation was, with each of its outcomes, is asserted: the test cannot fade away.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests import lanes, scratch
from tests.driver.ground import host_disk
from tests.store.model import KIB, MIB, Answer, Request, World
from tests.store.workers import Died, Worker, Workers

pytestmark = [pytest.mark.lane("root", "overlay", "loop"), pytest.mark.timeout(3600)]

PROCESSES = 3
CAP_SYS_RESOURCE = 24
NAMES = ["a", "b:c", "d/e f", "g", "h", "größe"]
PATHS = ["one", "two", "three", "sub/four"]
# Sums of these are clearly below a limit or clearly above it, whatever a file system takes for itself.
BIG, LARGE, MEDIUM = 5 * MIB - 64 * KIB, 3 * MIB - 64 * KIB, MIB - 64 * KIB
SIZES = [BIG, LARGE, BIG, 5000, BIG, 0, MEDIUM]
LIMITS = [12 * MIB, 6 * MIB, 12 * MIB, 0, 8 * MIB]
LABELS: list[dict[str, str]] = [{}, {"a": "1"}, {"a": "2", "b/c": "d e"}]
# Hypothesis begins with the least of everything: that is a walk through these in order.
ROUND = [
    "create", "write", "read", "write", "mount", "resize", "umount", "write", "resize", "check", "update",
    "commit", "create", "write", "unlink", "resize", "rm", "view", "write", "unlink", "mount", "rm", "umount",
    "rename", "reopen", "create", "resize", "write", "mount", "commit", "umount", "write", "resize", "rm",
    "gc", "view", "read", "resize", "write", "unlink", "umount", "rm",
]  # fmt: skip
TURNS = 8  # deaths fall differently each time: when something was not seen, a few more stores look for it
NEAR = 32  # requests, among which one with an outcome that was not seen yet is looked for
PAIRS = 10  # of so many steps, one is two at the same time
CONTENT = ("write", "unlink", "read")  # whole files: two at the same time see each other's parts
PASSING = ("Busy", "NotSupported")  # what a request may be refused with while another is carried out
FEW = 4  # layers, below which none is removed
SEED = 20
DEATHS = 20  # places in an operation at which a process may die
KEPT_EMPTY = [
    "layers", "meta", "diff", "work", "mnt", "img", "containers_quota", "holds", "children", "trash", "lost",
]  # fmt: skip

# What a run has to have seen.
EVERYWHERE = {
    "two at the same time",
    *(f"{do} done" for do in ROUND),
    *(f"{do} killed" for do in ROUND),
    *("create: AlreadyExists", "create: NotFound", "commit: AlreadyExists", "commit: Busy", "rm: Busy"),
    *("write: EROFS", "unlink: EROFS", "rename: AlreadyExists", "resize: InvalidArgument"),
}
LIMITED = {
    *("write: ENOSPC", "resize: Busy", "resize: OutOfSpace"),
    *(f"resize {how} {end}" for how in ("grow", "less", "first", "none") for end in ("done", "killed")),
}
UNLIMITED = {"create: NotSupported", "resize: NotSupported"}


@dataclass(frozen=True)
class Step:
    """``do`` and the like choose from the lists above; ``die`` is where in the operation the process dies."""

    who: int
    die: int | None
    do: int
    one: int
    two: int
    what: int


ANY = st.integers(0, 127)
STEPS = st.builds(
    Step,
    who=st.integers(0, PROCESSES - 1),
    die=st.one_of(st.none(), st.none(), st.none(), st.integers(0, DEATHS - 1)),
    do=st.integers(0, len(ROUND) - 1),
    one=ANY,
    two=ANY,
    what=ANY,
)


class Machine(RuleBasedStateMachine):
    """One store on a root of its own, and its model."""

    disk: ClassVar[Path]
    workers: ClassVar[Workers]
    limiter: ClassVar[str]
    wanted: ClassVar[set[str]]
    seen: ClassVar[Counter[str]]
    lengths: ClassVar[dict[str, int]]  # steps that a process did for the last of each operation

    def __init__(self) -> None:
        super().__init__()
        self.seen["examples"] += 1
        self.root = self.disk / f"root{self.seen['examples']}"
        self.world = World(
            limits=self.limiter == "image", online=bool(lanes.capabilities() >> CAP_SYS_RESOURCE & 1)
        )
        self.processes = [self._start() for _ in range(PROCESSES)]
        self.steps = 0
        self.story: list[str] = []
        self.failed = False

    def _start(self) -> Worker:
        worker = self.workers.start(self.root, self.limiter)
        assert worker.opened == []
        return worker

    @rule(step=STEPS)
    def take(self, step: Step) -> None:
        """Do the same to the store and to the model."""
        self.failed = True
        if (step.what + self.steps) % PAIRS == 0 and self._take_two(step):
            self.failed = False
            return
        request, after, answer = self._request(step)
        kinds = self._kinds(request, answer)
        die = self._death(step, kinds)
        self.story.append(f"process {step.who}, to die at {die}: {request}")
        try:
            found = self.processes[step.who].ask(request, die=die)
        except Died:
            self.processes[step.who] = self._start()
            self._judge(request, after)
            self.seen.update(f"{kind} killed" for kind in kinds)
        else:
            self.story.append(f"  {found}")
            assert _agree(found, answer), f"{request}: {found}, not {answer}"
            assert found["portrait"] == after.portrait(), request
            self.world = after
            self.lengths[request["do"]] = found["steps"]
            self.seen.update(_outcomes(kinds, answer))
        self.seen["steps"] += 1
        self.steps += 1
        self.failed = False

    def _take_two(self, step: Step) -> bool:
        """Two processes at the same time: as if one had been first. False when that need not be so."""
        other = dataclasses.replace(step, do=step.do + 17, one=step.one + step.two, what=step.what + 1)
        requests = [self._aim(step), self._aim(other)]
        shared = set.intersection(*({r.get(key) for key in ("name", "new", "parent")} for r in requests))
        shared -= {None, ""}
        if shared and all(request["do"] in CONTENT for request in requests):
            return False
        self.story.append(f"processes {step.who} and the next: {requests}")
        pair = [self.processes[(step.who + number) % PROCESSES] for number in range(2)]
        for worker, request in zip(pair, requests, strict=True):
            worker.send(request)
        found = [worker.receive() for worker in pair]
        portrait = pair[0].ask({"do": "gc"})["portrait"]
        self.story.append(f"  {found}, then {portrait}")
        for order in ((0, 1), (1, 0)):
            after, excused = self.world, 0
            for number in order:
                before, after = after, after.copy()
                answer = after.perform(requests[number])
                if not _agree(found[number], answer):
                    # It may have been refused because the other was in the middle of it.
                    after = before
                    excused += 1 if shared and found[number].get("error") in PASSING else 2
            if excused <= 1 and after.portrait() == portrait:
                self.world = after
                self.seen.update({"steps": 2, "two at the same time": 1})
                self.steps += 1
                return True
        raise AssertionError(f"in no order: {requests}: {found}, then {portrait}")

    def _request(self, step: Step) -> tuple[Request, World, Answer]:
        """What the step asks for, and what will come of it; rather what was not seen yet, if it is near."""
        tried = []
        for near in range(NEAR if self.wanted - self.seen.keys() else 1):
            request = self._aim(
                dataclasses.replace(
                    step,
                    do=step.do + near // 8,
                    one=step.one + near,
                    two=step.two + 3 * near,
                    what=step.what + near,
                )
            )
            after = self.world.copy()
            answer = after.perform(request)
            tried.append((request, after, answer))
            kinds = self._kinds(request, answer)
            if self._is_new(*_outcomes(kinds, answer)) or self._is_new_death(kinds):
                return tried[-1]
        return tried[0]

    def _kinds(self, request: Request, answer: Answer) -> list[str]:
        """The operation, and which kind of it."""
        if request["do"] == "resize" and "value" in answer:
            return ["resize", f"resize {self._how(request)}"]
        return [request["do"]]

    def _is_new(self, *events: str) -> bool:
        """Whether one of them is wanted and was not seen yet."""
        return not (self.wanted - self.seen.keys()).isdisjoint(events)

    def _is_new_death(self, kinds: list[str]) -> bool:
        return kinds[0] in self.lengths and self._is_new(*(f"{kind} killed" for kind in kinds))

    def _death(self, step: Step, kinds: list[str]) -> int:
        """The step at which the process is to die: here and there, and where none died yet."""
        die = step.what % DEATHS if step.die is None and self._is_new_death(kinds) else step.die
        return -1 if die is None else self.lengths.get(kinds[0], 0) * die // DEATHS

    def _judge(self, request: Request, after: World) -> None:
        """What a process left that died in the middle: the state of before, or that of after."""
        found = self.processes[0].ask({"do": "check"})
        assert found["value"] == [], f"{request}: {found}"
        if request["do"] in ("write", "unlink"):
            self._settle(request, after)
        elif found["portrait"] != self.world.portrait():
            assert found["portrait"] == after.portrait(), request
            self.world = after

    def _settle(self, request: Request, after: World) -> None:
        """The beginning of a file may be there, and only the file in question may be another."""
        name, path = request["name"], request["path"]
        if name not in self.world.entries or self.world.entries[name].kind != "active":
            return
        found = self.processes[0].ask({"do": "read", "name": name})["value"]
        tree = {at: tuple(file) for at, file in found.items()}
        now, before = tree.pop(path, None), self.world.tree(name)
        assert tree == {at: file for at, file in before.items() if at != path}, request
        if now == before.get(path):
            return
        if now is not None and now != after.tree(name).get(path):
            size, filling = now
            assert request["do"] == "write", (request, now)
            assert size <= request["size"], (request, now)
            assert filling == (request["filling"] if size else 0), (request, now)
            # A model that knows to the byte what fits would have to know ext4: what was cut short goes.
            assert self.processes[0].ask({"do": "unlink", "name": name, "path": path})["value"] == "unlinked"
            now = None
        self.world.settle(name=name, path=path, found=now)

    # -- what a step means here ----------------------------------------------------------------------

    def _aim(self, step: Step) -> Request:
        """The request, of which most can be carried out."""
        what = step.what + self.steps
        do = self._suited(ROUND[(step.do + self.steps) % len(ROUND)], step.what)
        request: Request = {"do": do}
        if do in ("create", "view"):
            request |= {"name": self._free(step.one), "parent": self._parent(step.two)}
        elif do not in ("gc", "check", "reopen"):
            request["name"] = self._present(do, step.one)
        if do in ("commit", "rename"):
            request["new"] = self._free(step.two)
        if do in ("create", "view", "commit", "update"):
            request["labels"] = LABELS[what % len(LABELS)]
        if do in ("create", "resize"):
            request["limit"] = LIMITS[what % len(LIMITS)] if self.world.limits or what % 4 == 0 else 0
        if do in ("write", "unlink"):
            request["path"] = self._path(request["name"], step.two, do)
        match do:
            case "commit":
                request["durable"] = what % 2 == 0
            case "write":
                size = SIZES[what % len(SIZES)]
                entry = self.world.entries.get(request["name"])
                if entry is not None and entry.limit and what % 3 == 0:
                    size = entry.too_much(request["path"])
                request |= {"size": size, "filling": self.steps % 250 + 1}
        return request

    def _suited(self, do: str, number: int) -> str:
        """Mostly another operation instead of one that can only fail here."""
        entries = self.world.entries
        if number % 8 == 7:
            return do
        match do:
            case "create" | "view" if len(entries) == len(NAMES):
                return "rm"
            case "umount" if not any(entry.holds for entry in entries.values()):
                return "mount"
            case "rm" if len(entries) < FEW:
                return "create"
            case "commit" | "resize" | "write" | "unlink":
                if not any(entry.kind == "active" for entry in entries.values()):
                    return "create"
        return do

    def _free(self, number: int) -> str:
        """Mostly a name that nobody has."""
        return _choose([name for name in NAMES if name not in self.world.entries], NAMES, number)

    def _present(self, do: str, number: int) -> str:
        """Mostly the name of a layer with which that can be done."""
        entries = self.world.entries
        suited = list(entries)
        match do:
            case "commit" | "resize":
                suited = [name for name, entry in entries.items() if entry.kind == "active"]
            case "write" | "unlink" if number % 16 != 6:
                suited = [name for name, entry in entries.items() if entry.kind == "active"]
            case "umount":
                suited = [name for name, entry in entries.items() if entry.holds]
            case "rm":
                suited = [name for name in entries if not self.world.children(name)]
        return _choose(suited, NAMES, number)

    def _parent(self, number: int) -> str:
        """None, or mostly a committed layer."""
        committed = [name for name, entry in self.world.entries.items() if entry.kind == "committed"]
        return _choose([*committed, *committed, ""], NAMES, number)

    def _path(self, name: str, number: int, do: str) -> str:
        """To unlink, mostly one that is there."""
        there = sorted(self.world.tree(name)) if do == "unlink" and name in self.world.entries else []
        return _choose(there, PATHS, number + self.steps)

    def _how(self, request: Request) -> str:
        """In which way a resize changes the limit."""
        old, new = self.world.entries[request["name"]].limit, request["limit"]
        if old == new:
            return "same"
        if not old or not new:
            return "first" if new else "none"
        return "grow" if new > old else "less"

    # -- the end -------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Remove everything, and see that nothing is left of it."""
        try:
            if self.failed:
                print(f"store {self.root.name}, {self.limiter}:", *self.story, sep="\n  ")
            else:
                self._remove_everything()
        finally:
            for worker in self.processes:
                worker.close()
        if not self.failed:
            shutil.rmtree(self.root)

    def _remove_everything(self) -> None:
        entries = self.world.entries
        requests: list[Request] = [
            {"do": "umount", "name": name} for name, entry in entries.items() for _ in range(entry.holds)
        ]
        depth = dict.fromkeys(entries, 0)
        for name in entries:
            above = entries[name].parent
            while above:
                depth[name] += 1
                above = entries[above].parent
        requests += [{"do": "rm", "name": name} for name in sorted(entries, key=lambda name: -depth[name])]
        for request in [*requests, {"do": "gc"}, {"do": "check"}]:
            answer = self.world.perform(request)
            found = self.processes[0].ask(request)
            assert found.get("value", found) == answer["value"], request
        assert self.world.entries == {}
        assert scratch.leftovers(self.root, patience=5.0) == []
        for directory in KEPT_EMPTY:
            left = os.listdir(self.root / directory) if (self.root / directory).is_dir() else []
            assert left == [], directory


def _outcomes(kinds: list[str], answer: Answer) -> list[str]:
    """What is seen when a process survives it."""
    outcome = answer.get("error") or answer["value"]
    done = [f"{kind} done" for kind in kinds if "value" in answer]
    return [*done, f"{kinds[0]}: {outcome}"] if isinstance(outcome, str) else done


def _agree(found: Answer, answer: Answer) -> bool:
    """Whether the answer is the one foretold."""
    return {key: value for key, value in found.items() if key in answer} == answer


def _choose(suited: list[str], others: list[str], number: int) -> str:
    """One of the suited if there are any, but for one time in eight."""
    among = suited if suited and number % 8 != 7 else others
    return among[number // 8 % len(among)] if suited else among[number % len(among)]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.mark.parametrize(
    ("limiter", "examples", "length", "wanted"),
    [
        pytest.param("image", 7, 80, EVERYWHERE | LIMITED, id="image"),
        pytest.param("none", 3, 60, EVERYWHERE | UNLIMITED, id="none"),
        pytest.param("image", 60, 90, EVERYWHERE | LIMITED, id="image-long", marks=pytest.mark.long),
        pytest.param("none", 15, 60, EVERYWHERE | UNLIMITED, id="none-long", marks=pytest.mark.long),
    ],
)
def test_store_agrees_with_the_model(
    limiter: str,
    examples: int,
    length: int,
    wanted: set[str],
    tmp_path: Path,
    workers: Workers,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    seed = random.randrange(1 << 32) if "long" in request.node.callspec.id else SEED
    seed = int(os.environ.get("LAYERLIMIT_SEED", seed))
    print(f"seed {seed} (LAYERLIMIT_SEED)")
    with host_disk(tmp_path) as disk:
        seen: Counter[str] = Counter()
        machine = type(
            "Store",
            (Machine,),
            {
                "disk": disk,
                "workers": workers,
                "limiter": limiter,
                "wanted": wanted,
                "seen": seen,
                "lengths": {},
            },
        )
        for turn in range(TURNS):
            if turn and wanted <= set(seen):
                break
            run_state_machine_as_test(
                hypothesis.seed(seed + turn)(machine),
                settings=settings(
                    max_examples=2 if turn else examples,
                    stateful_step_count=length,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],  # each try costs seconds: what fails is shown as it was
                    suppress_health_check=list(HealthCheck),
                ),
            )
    for event in sorted(wanted - set(seen)):
        print("never:", event)
    record_property("steps", seen["steps"])
    print(f"{seen['steps']} steps in {seen['examples']} stores: {dict(sorted(seen.items()))}")
    assert seen["steps"] >= examples * length * 0.9
    assert wanted <= set(seen)
