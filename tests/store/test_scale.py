"""What an operation costs does not go with the number of layers: counted, not timed (bench/store.py times).

Counted are the calls that Python's audit hooks see (files opened, made, renamed, listed, ioctls), the entries
of every directory that is listed, and the statements that the database carries out.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from layerlimit import Limit, Policy, Store
from layerlimit.linux.statx import is_mount_point
from layerlimit.store.loops import attached_below
from tests import scratch
from tests.driver.ground import host_disk

MIB = 1 << 20
LIMIT = Limit(8 * MIB)
POLICY = Policy(overcommit=1e9, floor=0)
DEPTH = 20

pytestmark = pytest.mark.lane("overlay", "loop")

_counts: Counter[str] | None = None
_LISTINGS = ("os.listdir", "os.scandir")


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook cannot be taken away: it counts while somebody asks for it."""
    global _counts
    if _counts is None or not event.startswith(("open", "os.", "fcntl.", "sqlite3.")):
        return
    counts, _counts = _counts, None
    try:
        counts[event] += 1
        if event in _LISTINGS and isinstance(arguments[0], str | os.PathLike):
            counts["entries listed"] += len(os.listdir(arguments[0]))
    except OSError:
        pass
    finally:
        _counts = counts


@contextmanager
def counting(store: Store) -> Iterator[Counter[str]]:
    """What is done in the block."""
    global _counts
    counts: Counter[str] = Counter()
    database = store.database.connection()
    database.set_trace_callback(lambda _: counts.update(["statements"]))
    _counts = counts
    try:
        yield counts
    finally:
        _counts = None
        database.set_trace_callback(None)


sys.addaudithook(_see)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with host_disk(tmp_path, mib=2048) as disk:
        yield disk


def grow(store: Store, layers: int) -> None:
    """Chains of committed layers, every second one limited."""
    for number in range(layers):
        chain, step = divmod(number, DEPTH)
        above = f"{chain}-{step - 1}" if step else ""
        store.create("new", above, limit=LIMIT if step % 2 else None)
        store.commit("new", f"{chain}-{step}", durable=False)


def costs(store: Store, name: str) -> dict[str, Counter[str]]:
    """What each operation of a layer's life costs, the opening of a store included."""
    found: dict[str, Counter[str]] = {}

    def count(what: str, action: Callable[[], object]) -> None:
        with counting(store) as counts:
            action()
        found[what] = counts

    count("open", lambda: Store(store.root, policy=POLICY).close())
    count("create", lambda: store.create(name, "0-0", limit=LIMIT))
    count("mount", lambda: store.mount(name))
    count("state", lambda: store.state(name))
    count("usage", lambda: store.usage(name))
    count("capacity", store.capacity)
    count("umount", lambda: store.umount(name))
    count("rename", lambda: store.rename(name, f"{name}+"))
    count("commit", lambda: store.commit(f"{name}+", name))
    count("rm", lambda: store.rm(name))
    count("delete", lambda: store.reaper.run(everywhere=False))
    count("view", lambda: store.view(name, "0-0"))
    count("mount a view", lambda: store.mount(name))
    store.umount(name)
    count("rm a view", lambda: store.rm(name))
    with counting(store) as counts:
        store.ls()
    found["statements of ls"] = Counter({"statements": counts["statements"]})
    return found


def least(store: Store, name: str) -> dict[str, Counter[str]]:
    """The least of some lives: a race for a free loop device, lost to others on the machine, costs more."""
    lives = [costs(store, f"{name}{number}") for number in range(5)]
    return {
        what: Counter({each: min(life[what][each] for life in lives) for each in counts})
        for what, counts in lives[0].items()
    }


@pytest.mark.parametrize("layers", [200, pytest.param(1_000, marks=pytest.mark.long)])
def test_nothing_that_an_operation_does_goes_with_the_number_of_layers(disk: Path, layers: int) -> None:
    with Store(disk / "root", policy=POLICY) as store:
        grow(store, 10)
        store.create("sibling", "0-0")
        costs(store, "first")  # the first of everything makes a template, a directory, a query plan
        few = least(store, "few")
        assert few["create"]["statements"] > 3
        assert few["create"]["open"] > 5
        for number in range(10, layers):
            store.create("new", "0-0", limit=LIMIT if number % 2 else None)
            store.commit("new", f"more {number}", durable=False)
        assert len(store.driver.ids()) >= layers
        many = least(store, "many")
        for what, counts in few.items():
            assert many[what] == counts, what


@pytest.mark.parametrize("mounts", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_many_limited_layers_mounted_at_once(disk: Path, mounts: int) -> None:
    with Store(disk / "root", policy=POLICY) as store:
        grow(store, 1)
        store.create("sibling", "0-0")
        costs(store, "first")
        few = least(store, "few")
        names = [f"{number}" for number in range(mounts)]
        paths = {}
        for name in names:
            store.create(name, "0-0", limit=LIMIT)
            paths[name] = store.mount(name)
        assert len(list(attached_below(store.root / "containers_quota"))) == mounts
        assert len({os.statvfs(path).f_fsid for path in paths.values()}) == mounts
        for path in paths.values():
            space = os.statvfs(path)
            assert LIMIT.bytes <= space.f_bavail * space.f_frsize <= LIMIT.bytes * 1.01
        many = least(store, "many")
        for what, counts in few.items():
            assert many[what] == counts, what
        for name in names[::2]:
            store.umount(name)
        assert [is_mount_point(paths[name]) for name in names] == [False, True] * (mounts // 2)
        store.driver.cleanup()
        assert scratch.leftovers(store.root, patience=10) == []


def test_a_parent_is_told_from_the_others_without_a_search(disk: Path) -> None:
    """The index of children is that of the chains: also after a boot, of which nothing of it may be left."""
    with Store(disk / "root", policy=POLICY) as store:
        grow(store, 3)
        store.create("top", "0-0")
        id = {name: store.stat(name).id for name in ("0-0", "0-1", "0-2", "top")}
    for gone in (False, True):
        if gone:
            for path in (disk / "root/children").iterdir():
                for child in path.iterdir():
                    child.unlink()
                path.rmdir()
            (disk / "root/children" / id["top"]).mkdir()
            (disk / "root/children" / id["top"] / "never-was").touch()
            (disk / "root/open").unlink()
        with Store(disk / "root", policy=POLICY) as store:
            assert store.driver.swept == gone
            index = {path.name: sorted(os.listdir(path)) for path in (disk / "root/children").iterdir()}
            assert index == {id["0-0"]: sorted([id["0-1"], id["top"]]), id["0-1"]: [id["0-2"]]}
