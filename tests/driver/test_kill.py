"""Killing a process at any step of any operation leaves a layer whole or not there, and nothing behind.

Every case runs an operation once under strace, which lists its steps; then again for each step, killed there.
This process, which shares nothing with the victim but the disk, opens the root: what it sees must be the
picture of before the operation or that of after, to the last file, mount and loop device; the layer must
work, show its content and be held to its limit; and what was interrupted must succeed when it is done again.

The same steps are then made to fail with EIO and ENOSPC: a typed error, nothing half-done, and again the
retried operation succeeds.
"""

from __future__ import annotations

import io
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layerlimit import Driver, Limit, NotSupported, adopt
from layerlimit.limit import ext4
from tests.driver import goroot
from tests.driver.ground import (
    difference,
    host_disk,
    picture,
    picture_at_rest,
    remove_everything,
    run,
    settled_picture,
)
from tests.driver.strace import Outcome, Step, Victims

pytestmark = [pytest.mark.lane("root", "overlay", "loop", "strace"), pytest.mark.timeout(900)]

SMALL = 8 << 20
LARGE = 16 << 20
ENTRIES = 200


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with host_disk(tmp_path_factory.mktemp("kill")) as path:
        yield path


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with Victims(tmp_path_factory.mktemp("victims")) as server:
        yield server


# -- what is there before the operation ---------------------------------------------------------


def make(driver: Driver, id: str) -> None:
    """One of the layers that cases are made of, with its ancestors and a file of its own; once."""
    parent, size = {
        "base": ("", 0),
        "plain": ("base", 0),
        "limited": ("base", SMALL),
        "full": ("base", SMALL),  # with all of the tar
        "twin": ("base", LARGE),
        "bare": ("base", 0),
        "heir": ("limited", SMALL),  # a limited layer over a limited one
        "child": ("limited", 0),
        "root": ("", SMALL),  # a limited base
    }[id]
    if driver.exists(id):
        return
    if parent:
        make(driver, parent)
    driver.create(id, parent, limit=Limit(size) if size else None)
    with driver.mounted(id) as path:
        (path / id).write_text(id)
    if id == "full":
        with open(layer_tar(driver.root.parent), "rb") as tar:
            driver.apply_diff(id, tar)


def layers(*ids: str) -> Callable[[Driver], None]:
    def prepare(driver: Driver) -> None:
        for id in ids:
            make(driver, id)

    return prepare


def held(id: str, *, read_only: bool = False) -> Callable[[Driver], None]:
    def prepare(driver: Driver) -> None:
        make(driver, id)
        driver.get(id, read_only=read_only)

    return prepare


def engaged(driver: Driver) -> None:
    make(driver, "heir")
    driver.mounts("heir")


def without_templates(driver: Driver) -> None:
    make(driver, "base")
    for path in (driver.root / "templates").glob("*"):
        path.unlink()


def replace(id: str, *others: str) -> Callable[[Driver], None]:
    """The layer made anew, as the operation changes it for good."""

    def prepare(driver: Driver) -> None:
        if driver.exists(id):
            driver.remove(id)
        layers(id, *others)(driver)

    return prepare


def layer_tar(directory: Path) -> str:
    """A layer tar of ENTRIES files that also deletes, replaces and links."""
    path = directory / "layer.tar"
    if not path.exists():
        with tarfile.open(path, "w") as tar:
            for number in range(ENTRIES):
                entry = tarfile.TarInfo(f"d{number % 7}/f{number}")
                content = b"x" * (number * 7 % 900)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            for name, kind, target in (("hard", tarfile.LNKTYPE, "d0/f0"), ("soft", tarfile.SYMTYPE, "d1")):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, target
                tar.addfile(entry)
            tar.addfile(tarfile.TarInfo(".wh.base"))
            tar.addfile(tarfile.TarInfo("last"))
    return str(path)


@dataclass(frozen=True)
class Case:
    """An operation of victim.py, and what is there before it.

    ``prepare`` makes it so, from nothing or from what a killed or finished operation left after a cleanup.
    ``unmounts``: the operation unmounts and then goes on; all unmounted is one more good end. ``every`` is
    how many points lie between two that are tried in the short run, which leaves out ``long`` ones.
    """

    name: str
    prepare: Callable[[Driver], None]
    operation: tuple[Any, ...]
    unmounts: bool = False
    every: int = 1
    long: bool = False


CASES = [
    Case("open", layers("base"), ("open", "ROOT")),
    Case("create-base", layers(), ("create", "new", "", 0)),
    Case("create-plain", layers("base"), ("create", "new", "base", 0)),
    Case("create-limited", layers("base"), ("create", "new", "base", SMALL)),
    Case("create-over-limited", layers("limited"), ("create", "new", "limited", SMALL)),
    Case("create-template", without_templates, ("create", "new", "base", SMALL)),
    Case("get-plain", layers("plain"), ("get", "plain")),
    Case("get-root", layers("root"), ("get", "root")),
    Case("get-limited", layers("limited"), ("get", "limited")),
    Case("get-child", layers("child"), ("get", "child")),
    Case("get-heir", layers("heir"), ("get", "heir")),
    Case("get-view", layers("heir"), ("get", "heir", True)),
    Case("mounts", layers("heir"), ("mounts", "heir")),
    Case("mounted", layers("heir"), ("mounted", "heir")),
    Case("put-plain", held("plain"), ("put", "plain")),
    Case("put-root", held("root"), ("put", "root")),
    Case("put-limited", held("limited"), ("put", "limited")),
    Case("put-heir", held("heir"), ("put", "heir")),
    Case("put-view", held("heir", read_only=True), ("put", "heir", True)),
    Case("release", engaged, ("release", "heir")),
    Case("remove-plain", layers("plain"), ("remove", "plain")),
    Case("remove-limited", layers("heir"), ("remove", "heir")),
    Case("remove-held", held("heir"), ("remove", "heir"), unmounts=True),
    Case("resize", replace("limited"), ("resize", "limited", LARGE)),
    Case("copy-limited", replace("twin", "full"), ("copy", "full", "twin"), every=400),
    Case("copy-unlimited", replace("bare", "full"), ("copy", "full", "bare"), every=400, long=True),
    Case("diff", layers("heir"), ("diff", "heir")),
    Case("cleanup", held("heir"), ("cleanup",), unmounts=True),
    Case("apply-plain", replace("plain"), ("apply", "plain", "TAR"), every=40),
    Case("apply-heir", replace("heir"), ("apply", "heir", "TAR"), every=40),
]


EACH = [pytest.param(case, id=case.name, marks=[pytest.mark.long] if case.long else []) for case in CASES]


class Field:
    """One root on which a case is tried again and again."""

    def __init__(self, root: Path, case: Case, victims: Victims) -> None:
        self.root = root
        self.case = case
        self.victims = victims
        words = {"ROOT": str(root), "TAR": layer_tar(root.parent)}
        self.operation = tuple(words.get(word, word) for word in case.operation)
        Driver(root)
        self.empty = picture_at_rest(root)
        self.prepare()
        self.before = picture_at_rest(root)
        outcome = self.run()
        if case.prepare is not without_templates:  # the first run makes a template
            self.prepare()
            outcome = self.run()
        assert outcome.result == "ok", outcome.message
        self.trace = outcome.trace
        Driver(root)
        self.after = picture_at_rest(root)
        self.states = [self.before, self.after]
        if case.unmounts:
            Driver(root).cleanup()
            self.prepare()
            Driver(root).cleanup()
            self.states.append(picture_at_rest(root))

    def run(self) -> Outcome:
        return self.victims.run(self.root, *self.operation)

    def prepare(self) -> None:
        """Go back to before the operation, whatever there is."""
        driver = Driver(self.root)
        driver.cleanup()
        if self.case.operation[:2] == ("create", "new") and driver.exists("new"):
            driver.remove("new")
        self.case.prepare(driver)

    def prepared(self) -> None:
        self.prepare()
        found = settled_picture(self.root, [self.before])
        assert found == self.before, f"not undone by cleanup and remove:\n{difference(found, self.before)}"

    def judge(self) -> None:
        """What another process finds, now, is one of the two states, and works."""
        driver = Driver(self.root)
        found = settled_picture(self.root, self.states)
        if found not in self.states:
            nearest = min(self.states, key=lambda wanted: len(found ^ wanted))
            raise AssertionError(f"neither before nor after:\n{difference(found, nearest)}")
        ids = {"open": (), "copy": self.operation[1:3]}.get(self.operation[0], self.operation[1:2])
        for id in ids:
            if driver.exists(id):
                works(driver, id)

    def again(self) -> None:
        """What was interrupted can be done now, unless it was done."""
        if self.before != self.after and picture(self.root) == self.before:
            outcome = self.run()
            assert outcome.result == "ok", f"again: {outcome.message}"
            found = settled_picture(self.root, self.states)
            assert found in self.states, f"again:\n{difference(found, self.after)}"

    def clear(self) -> None:
        remove_everything(Driver(self.root))
        found = settled_picture(self.root, [self.empty])
        assert found == self.empty, f"left when all is removed:\n{difference(found, self.empty)}"

    def attempt(self, steps: list[Step], disturb: Callable[[Field, Step], Outcome]) -> Iterator[str]:
        """Disturb each step; yields what is wrong then. After that the root is made anew."""
        here = self
        for step in steps:
            log = ""
            try:
                here.prepared()
                outcome = disturb(here, step)
                log = "\n".join(outcome.log.splitlines()[-12:])
                here.judge()
                here.again()
            except Exception as error:
                yield f"--- {step}\n{type(error).__name__}: {error}\n{log}"
                here = Field(here.root.with_name(here.root.name + "-"), self.case, self.victims)
        here.clear()


def works(driver: Driver, id: str) -> None:
    """The layer mounts, is held to its limit, shows all or nothing of a change, and can be written."""
    with driver.mounted(id) as path:
        limit = driver.limit(id)
        space = os.statvfs(path)
        if limit is not None:
            assert limit.bytes in (SMALL, LARGE)
            assert (
                0
                <= space.f_bfree * space.f_frsize - limit.bytes + driver.usage(id).bytes
                < limit.bytes * 0.25
            )
            work = driver.root / "img" / id / "work"
            assert sorted(os.listdir(work)) == ["work"]
        elif driver.parent(id):
            assert sorted(os.listdir(driver.root / "work" / id)) == ["work"]
        (path / "probe").write_text("works")
        os.unlink(path / "probe")
        if id == "new":
            return
        tar = (path / "last").exists()
        own = "full" if tar and id in ("twin", "bare") else id  # those are made copies of it
        assert (path / own).read_text() == own
        assert (path / "base").exists() == (not tar and id != "root")
        assert sum(len(names) for where, _, names in os.walk(path) if Path(where) != path) == ENTRIES * tar


def points_of(case: Case, steps: list[Step], config: pytest.Config) -> list[Step]:
    """All steps, or in a short run every so many, the last ones always: there the operation takes effect."""
    if case.every == 1 or config.option.long:
        return steps
    return steps[: -40 : case.every] + steps[-40::4]


@pytest.mark.parametrize("case", EACH)
def test_kill_at_every_step(case: Case, disk: Path, victims: Victims, pytestconfig: pytest.Config) -> None:
    ground = Field(disk / f"kill-{case.name}", case, victims)
    points = points_of(case, ground.trace.points(), pytestconfig)
    assert points

    def kill(there: Field, step: Step) -> Outcome:
        return victims.kill_at(step, there.root, *there.operation)

    found = list(ground.attempt(points, kill))
    assert not found, f"{len(found)} of {len(points)} kills:\n" + "\n".join(found)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("case", EACH)
def test_error_at_every_step(
    case: Case, error: str, disk: Path, victims: Victims, pytestconfig: pytest.Config
) -> None:
    ground = Field(disk / f"{error}-{case.name}", case, victims)
    points = points_of(case, ground.trace.failing(), pytestconfig)

    def fail(there: Field, step: Step) -> Outcome:
        outcome = victims.fail_at(step, error, there.root, *there.operation)
        assert outcome.typed, f"{outcome.result}: {outcome.message}"
        return outcome

    found = list(ground.attempt(points, fail))
    assert not found, f"{len(found)} of {len(points)} failures:\n" + "\n".join(found)


def test_kill_at_every_step_of_the_first_opening(disk: Path, victims: Victims) -> None:
    """A root that was being made belongs to whoever opens it next."""
    clean = disk / "first"
    points = victims.run(clean, "open", str(clean)).trace.points()
    wanted = picture(clean)
    assert len(points) > 10
    for number, step in enumerate(points):
        root = disk / f"first-{number}"
        victims.kill_at(step, root, "open", str(root))
        Driver(root)
        assert picture(root) == wanted, f"{step}:\n{difference(picture(root), wanted)}"


def seen(root: Path) -> dict[str, list[tuple[str, int, int]]]:
    """What every layer of an adopted root shows: names, modes and owners."""
    driver = Driver(root)
    found = {}
    for id in driver.ids():
        with driver.mounted(id) as path:
            entries = [(entry, entry.lstat()) for entry in sorted(path.rglob("*"))]
            found[id] = [(str(entry.relative_to(path)), st.st_mode, st.st_uid) for entry, st in entries]
    driver.cleanup()
    return found


def test_kill_at_every_step_of_an_adoption(disk: Path, victims: Victims, pytestconfig: pytest.Config) -> None:
    """A root of the Go driver is nobody's until all of it is converted; another run finishes it."""
    saved, root = disk / "saved", disk / "go"
    goroot.make(saved)

    def restore() -> None:
        goroot.delete(root)
        goroot.run("cp", "-a", "--sparse=always", saved, root)

    restore()
    trace = victims.run(root, "adopt", str(root)).trace
    wanted = seen(root)
    assert set(wanted) == set(goroot.CHAINS)
    clean = picture_at_rest(root)
    points = trace.points()
    assert len(points) > 100
    for step in points if pytestconfig.option.long else points[::7]:
        restore()
        victims.kill_at(step, root, "adopt", str(root))
        if not (root / "format").exists():
            with pytest.raises(NotSupported):
                Driver(root, "overlay")
            adopt(root, owner_shift=goroot.SHIFT)
        assert seen(root) == wanted, str(step)
        found = settled_picture(root, [clean])
        assert found == clean, f"{step}:\n{difference(found, clean)}"
    goroot.delete(root)
    goroot.delete(saved)


@pytest.mark.parametrize("operation", ["get", "resize"])
def test_a_program_that_outlives_its_driver_keeps_the_image_to_itself(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """e2fsck goes on when its driver is killed: nobody may mount the image below it."""
    root = disk / f"outlived-{operation}"
    driver = Driver(root)
    driver.create("limited", limit=Limit(SMALL))
    run("debugfs", "-w", "-R", "ssv state 0", root / "containers_quota/limited.ext4")
    slow = tmp_path / "slow"
    slow.write_text(
        f'#!/bin/sh\ntouch {tmp_path}/begun\nsleep 0.5\n/sbin/e2fsck "$@"\ntouch {tmp_path}/done\n'
    )
    slow.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(ext4, "program", lambda name: str(slow))
        try:
            Driver(root).get("limited") if operation == "get" else Driver(root).resize(
                "limited", Limit(LARGE)
            )
        finally:
            os._exit(0)
    while not (tmp_path / "begun").exists():
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with Driver(root).mounted("limited"):
        assert (tmp_path / "done").exists()
    remove_everything(driver)
