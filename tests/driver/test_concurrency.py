"""Threads and processes on one root at once."""

from __future__ import annotations

import io
import os
import random
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from layerlimit import Driver, Limit
from layerlimit.errors import AlreadyExists, Busy, NotFound
from layerlimit.limit import MIB
from tests import scratch
from tests.driver.processes import Process, process

pytestmark = pytest.mark.lane("root", "overlay", "loop")

LIMIT = Limit(16 * MIB)
LIMITS = [None, LIMIT]


@pytest.fixture
def driver(root: Path) -> Iterator[Driver]:
    made = Driver(root, "overlay")
    yield made
    made.cleanup()


def outcomes(pool_size: int, work: list[object]) -> list[object]:
    """Runs callables at the same moment; their values, or the classes of their errors."""
    together = threading.Barrier(len(work))

    def run(call: object) -> object:
        assert callable(call)
        together.wait()
        try:
            return call()
        except (AlreadyExists, Busy, NotFound) as error:
            return type(error)

    with ThreadPoolExecutor(max(pool_size, len(work))) as pool:
        return list(pool.map(run, work))


@pytest.mark.parametrize("limit", LIMITS, ids=["plain", "limited"])
def test_one_of_many_creates_wins(driver: Driver, limit: Limit | None) -> None:
    driver.create("base", limit=limit)
    for turn in range(5):
        found = outcomes(12, [lambda turn=turn: driver.create(f"id-{turn}", "base", limit=limit)] * 12)
        assert sorted(map(str, found)) == sorted([str(None), *[str(AlreadyExists)] * 11])
        with driver.mounted(f"id-{turn}") as path:
            (path / "file").touch()


def test_drivers_open_one_new_root_at_once(root: Path) -> None:
    drivers = outcomes(16, [lambda: Driver(root, "overlay")] * 16)
    assert all(isinstance(driver, Driver) for driver in drivers)
    assert Driver(root).ids() == []


@pytest.mark.parametrize("limit", LIMITS, ids=["plain", "limited"])
def test_create_over_a_parent_that_is_removed(driver: Driver, limit: Limit | None) -> None:
    """Either the child is there and the parent too, or neither."""
    for turn in range(10):
        parent, child = f"parent-{turn}", f"child-{turn}"
        driver.create(parent, limit=limit)
        found = outcomes(
            2,
            [
                lambda parent=parent: driver.remove(parent),
                lambda parent=parent, child=child: driver.create(child, parent, limit=limit),
            ],
        )
        if driver.exists(child):
            assert found == [Busy, None]
            with driver.mounted(child):
                pass
        else:
            assert found == [None, NotFound]
            assert not driver.exists(parent)


def test_get_and_remove_of_one_layer(driver: Driver, root: Path) -> None:
    driver.create("base", limit=LIMIT)
    for turn in range(10):
        id = f"id-{turn}"
        driver.create(id, "base", limit=LIMIT)
        outcomes(4, [lambda id=id: driver.get(id)] * 3 + [lambda id=id: driver.remove(id)])
        if driver.exists(id):
            driver.remove(id)
        assert not (root / "mnt" / id).exists()
    driver.cleanup()
    assert scratch.leftovers(root, patience=5) == []


def test_readers_of_a_chain_and_users_of_it(driver: Driver) -> None:
    parent = ""
    for number in range(3):
        driver.create(f"layer-{number}", parent, limit=LIMIT)
        parent = f"layer-{number}"
        with driver.mounted(parent) as path:
            (path / parent).write_bytes(bytes(100_000))
    stop = threading.Event()

    def export(id: str) -> None:
        while not stop.is_set():
            with driver.diff(id) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                assert id in tar.getnames()
            assert [str(change) for change in driver.changes(id)] == [f"A /{id}"]
            assert driver.diff_size(id) == 100_000
            driver.usage(id)
            driver.state(id)

    def use(id: str) -> None:
        for _ in range(15):
            with driver.mounted(id) as path:
                assert (path / "layer-0").exists()

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(export, f"layer-{number}") for number in range(3)]
        users = [pool.submit(use, f"layer-{number}") for number in range(3)]
        try:
            for user in users:
                user.result()
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert scratch.leftovers(driver.root, patience=5) == []


def test_many_processes_share_one_mount(driver: Driver, root: Path) -> None:
    driver.create("base", limit=LIMIT)
    driver.create("shared", "base", limit=LIMIT)
    with ExitStack() as stack:
        others = [stack.enter_context(process(root)) for _ in range(4)]

        def use(other: Process) -> list[str]:
            return [other.ask(f"driver.{call}('shared')") for _ in range(15) for call in ("get", "put")]

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(use, others))
    for answer in answers:
        assert set(answer) == {str(root / "mnt" / "shared"), "None"}
    assert not driver.state("shared").mounted
    assert scratch.leftovers(root, patience=5) == []


def test_random_work_of_several_processes(driver: Driver, root: Path) -> None:
    """Every answer is success or one of the conflicts that such work must expect."""
    driver.create("base")
    ids = ["a", "b", "c"]
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    calls = [
        "driver.create({id!r}, 'base', limit=Limit(16 << 20))",
        "driver.create({id!r}, 'base')",
        "driver.get({id!r})",
        "driver.put({id!r})",
        "driver.remove({id!r})",
        "driver.changes({id!r})",
        "driver.diff({id!r}).close()",
        "driver.state({id!r}).mounted",
        "driver.usage({id!r}).inodes >= 0",
        "driver.limit({id!r}) is None",
        "driver.sweep()",
        "driver.ids() is None",
    ]
    with ExitStack() as stack:
        others = [stack.enter_context(process(root)) for _ in range(4)]

        def work(number: int) -> list[str]:
            chosen = random.Random(number)
            return [others[number].ask(chosen.choice(calls).format(id=chosen.choice(ids))) for _ in range(60)]

        with ThreadPoolExecutor(4) as pool:
            answers = [answer for found in pool.map(work, range(4)) for answer in found]
    words = {answer.split()[0] for answer in answers}
    expected = {"None", "True", "False", "NotFound", "AlreadyExists", "Busy"}
    strange = [a for a in answers if a.split()[0] not in expected and not a.startswith(("[", str(root)))]
    assert not strange, strange
    assert {"None", "NotFound", "AlreadyExists"} <= words
    driver.cleanup()
    for id in driver.ids():
        if id != "base":
            driver.remove(id)
    assert scratch.leftovers(root, patience=5) == []
    for name in ("holds", "trash", "containers_quota", "img", "work"):
        assert os.listdir(root / name) == [], name


def test_nothing_stays_open(driver: Driver) -> None:
    driver.create("base", limit=LIMIT)
    driver.create("child", "base", limit=LIMIT)

    def use() -> None:
        driver.get("child")
        driver.changes("child")
        with driver.diff("child") as stream:
            stream.read()
        driver.put("child")
        driver.state("child")

    use()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        use()
    assert sorted(os.listdir("/proc/self/fd")) == before
