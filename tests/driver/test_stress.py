"""Eight processes contend for four ids and their parents, and every fifty cycles one of them is killed."""

from __future__ import annotations

import json
import os
import random
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from layerlimit import Driver, Limit
from tests.driver.ground import difference, host_disk, picture_at_rest, run, settled_picture
from tests.driver.stress import CONTENTION, IDS, LIMIT

pytestmark = [pytest.mark.lane("root", "overlay", "loop"), pytest.mark.timeout(900)]

PROCESSES = 8
CYCLES = 1000
KILL_EVERY = 50


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with host_disk(tmp_path) as path:
        yield path


class Worker:
    """A process of stress.py; ``descriptors`` are what it had open after its first cycle and its last."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-W", "error", "-m", "tests.driver.stress", str(root)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.descriptors: list[int] = []

    @property
    def answers(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def begin(self, cycle: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{cycle}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.answers.close()


def blocks(disk: Path) -> int:
    """Bytes in use on the host disk, without those of the images that are there."""
    run("sync", "-f", disk)
    space = os.statvfs(disk)
    inside = sum(image.stat().st_blocks * 512 for image in disk.glob("root/containers_quota/*"))
    return (space.f_blocks - space.f_bfree) * space.f_frsize - inside


def settled_blocks(disk: Path, most: int) -> int:
    """The host's used bytes, once they are ``most`` or five seconds are over: discard and deletion lag."""
    deadline = time.monotonic() + 5
    while (found := blocks(disk)) > most and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def images(root: Path) -> list[str]:
    return sorted(os.listdir(root / "containers_quota"))


def test_contention_and_kills_leave_everything_as_it_was(disk: Path) -> None:
    root = disk / "root"
    driver = Driver(root, "overlay")
    driver.create("base")
    driver.create("parent", "base", limit=Limit(LIMIT))
    (driver.get("base") / "inherited").write_text("base")
    driver.put("base")
    with driver.mounted("parent") as path:
        (path / "inherited").write_text("parent")
    for id, (parent, limited) in IDS.items():  # directories of the root grow once
        driver.create(id, parent, limit=Limit(LIMIT) if limited else None)
        with driver.mounted(id):
            pass
        driver.remove(id)
    driver.cleanup()
    before = picture_at_rest(root)
    before_images = images(root)
    before_blocks = blocks(disk)
    before_descriptors = len(os.listdir("/proc/self/fd"))

    outcomes: Counter[str] = Counter()
    errors: list[str] = []
    chance = random.Random(5)
    workers = [Worker(root) for _ in range(PROCESSES)]
    killed = 0
    done = 0
    with selectors.DefaultSelector() as ready:
        for number, worker in enumerate(workers):
            ready.register(worker.answers, selectors.EVENT_READ, worker)
            worker.begin(number)
        begun = PROCESSES
        while done < CYCLES:
            events = ready.select(timeout=120)
            assert events, f"no process got on after {done} cycles"
            for key, _ in events:
                worker = key.data
                said, failed, descriptors = json.loads(worker.answers.readline())
                outcomes.update(said)
                errors += failed
                worker.descriptors = [*worker.descriptors[:1], descriptors]
                done += 1
                worker.begin(begun)
                begun += 1
                if done % KILL_EVERY == 0:
                    victim = chance.choice(workers)
                    time.sleep(chance.random() * 0.05)
                    ready.unregister(victim.answers)
                    victim.kill()
                    killed += 1
                    fresh = workers[workers.index(victim)] = Worker(root)
                    ready.register(fresh.answers, selectors.EVENT_READ, fresh)
                    fresh.begin(begun)
                    begun += 1
                    break  # the rest of events may be the victim's
        for worker in workers:
            ready.unregister(worker.answers)
    for worker in workers:
        last = worker.answers.read  # the cycle under way is finished, then stdin ends
        assert worker.process.stdin is not None
        worker.process.stdin.flush()
        worker.process.stdin.close()
        for line in last().splitlines():
            said, failed, descriptors = json.loads(line)
            outcomes.update(said)
            errors += failed
            worker.descriptors = [*worker.descriptors[:1], descriptors]
        worker.end()

    print(dict(sorted(outcomes.items())), "killed", killed)
    assert not errors, f"{len(errors)} errors, {dict(outcomes)}:\n" + "\n".join(errors[:5])
    assert killed == CYCLES // KILL_EVERY
    assert {outcome.split()[0] for outcome in outcomes} == set(CONTENTION)
    assert all(outcomes[f"{name} ok"] > 0 for name in CONTENTION), outcomes
    assert all(len(set(worker.descriptors)) <= 1 for worker in workers), [w.descriptors for w in workers]

    driver = Driver(root, "overlay")
    driver.cleanup()
    for id in set(driver.ids()) & set(IDS):
        driver.remove(id)
    found = settled_picture(root, [before])
    assert found == before, difference(found, before)
    assert images(root) == before_images
    # The parent's own image has its 4 MiB of journal filled meanwhile, which is all that it may cost.
    assert (root / "containers_quota/parent.ext4").stat().st_blocks * 512 < 5 << 20
    assert settled_blocks(disk, before_blocks) <= before_blocks
    assert len(os.listdir("/proc/self/fd")) == before_descriptors
