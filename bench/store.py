"""A store with many layers: what each operation costs among ten of them and among ten thousand.

Two stores on one disk take turns: a small one, and one with chains 20 deep, half of whose layers are limited.
The chains are made on a disk in memory, as only their number matters; what is compared with a target in
milliseconds is measured on the disk that is named. Each number stands beside its target.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.driver import memory
from layerlimit import Limit, Policy, Store

MIB = 1 << 20
DEPTH = 20
LIMIT = Limit(16 * MIB)
POLICY = Policy(overcommit=1e9, floor=0)

FLAT = 1.2  # at most this much slower among many layers than among few
LS_SECONDS = 1.0
COMMIT_MS = 3.0
REMOVE_MS = 3.0


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its tables; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench store", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 layers and 100 mounts, fewer rounds")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    options = parser.parse_args(arguments)
    layers, mounts, rounds = (1_000, 100, 20) if options.quick else (10_000, 1_000, 60)
    print(f"load of the machine: {' '.join(f'{each:.1f}' for each in os.getloadavg())}")
    directory = Path(tempfile.mkdtemp(prefix="layerlimit-bench-", dir=options.directory))
    targets = Targets()
    try:
        with in_memory(directory / "memory", mib=2048 + layers * 3 // 4) as fast:
            among_many(fast, layers, rounds, targets)
            mounted_at_once(fast, mounts, targets)
        on_disk(directory / "disk", rounds, targets)
    finally:
        shutil.rmtree(directory)
    if not targets.met:
        sys.exit(1)


class Targets:
    """Prints each number beside its target, and remembers whether all were met."""

    def __init__(self) -> None:
        self.met = True

    def say(self, what: str, value: float, unit: str, at_most: float | None = None) -> None:
        met = at_most is None or value <= at_most
        self.met &= met
        verdict = "" if at_most is None else "met" if met else "MISSED"
        target = "" if at_most is None else f"≤ {at_most:g} {unit}"
        print(f"{verdict:7}{what:58}{value:10.2f} {unit:4} {target}")


@contextlib.contextmanager
def in_memory(point: Path, *, mib: int) -> Iterator[Path]:
    """An ext4 in memory; the kernel allocates only what is written."""
    point.mkdir(parents=True)
    (point / "tmpfs").mkdir()
    (point / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib + 64}m", "bench", point / "tmpfs"], check=True)
    try:
        image = point / "tmpfs/image"
        with image.open("wb") as file:
            file.truncate(mib * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192", image], check=True)
        subprocess.run(["mount", "-o", "loop,discard", image, point / "disk"], check=True)
        try:
            yield point / "disk"
        finally:
            subprocess.run(["umount", point / "disk"], check=True)
    finally:
        subprocess.run(["umount", point / "tmpfs"], check=True)


def grow_chains(store: Store, layers: int) -> None:
    """Chains of committed layers, every second one limited."""
    for chain in range(layers // DEPTH):
        above = ""
        for number in range(DEPTH):
            store.create("new", above, limit=LIMIT if number % 2 else None)
            above = f"{chain}-{number}"
            store.commit("new", above, durable=False)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def processor_time(action: Callable[[], object]) -> float:
    """What the programs that it runs use: others on the machine make them wait, but not work."""
    before = os.times()
    action()
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def among_many(disk: Path, layers: int, rounds: int, targets: Targets) -> None:
    """The same operations on both stores in turn, each with a fresh layer over a base."""
    with Store(disk / "few", policy=POLICY) as few, Store(disk / "many", policy=POLICY) as many:
        grow_chains(few, DEPTH)
        seconds = timed(lambda: grow_chains(many, layers))
        print(f"{layers} layers made and committed in {seconds:.0f} s, in memory")
        times: dict[str, tuple[list[float], list[float]]] = {}
        for number in range(rounds):
            for which, store in enumerate((few, many)):
                for name, action in steps(store, f"layer{number}"):
                    times.setdefault(name, ([], []))[which].append(timed(action))
        for name, (small, large) in times.items():
            ratio = statistics.median(large) / statistics.median(small)
            told = f"{name}: {statistics.median(small) * 1e3:.2f} → {statistics.median(large) * 1e3:.2f} ms"
            # An unmount waits for the kernel; that we do nothing more is counted by the tests.
            targets.say(told, ratio, "×", None if name == "umount" else FLAT)
        targets.say(f"ls of {layers} layers", timed(many.ls), "s", LS_SECONDS)
        used = processor_time(lambda: command(many, "ls"))
        targets.say(f"the command ls of {layers} layers, user and system", used, "s", LS_SECONDS)
        each = [
            timed(lambda store=store: list(store.check(quick=True))) / max(count, 1)  # type: ignore[misc]
            for store, count in ((few, DEPTH), (many, layers))
        ]
        targets.say("check --quick: time per layer, many / few", each[1] / each[0], "×", 1.5)
        print(f"       {layers} layers checked in {each[1] * layers:.1f} s")


def command(store: Store, *words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "layerlimit", "--root", str(store.root), *words],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def steps(store: Store, name: str) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("open", lambda: Store(store.root, policy=POLICY).close()),
        ("create and mount", lambda: (store.create(name, "0-0", limit=LIMIT), store.mount(name))),
        ("umount", lambda: store.umount(name)),
        ("commit", lambda: store.commit(name, f"{name}-done")),
        ("rm", lambda: store.rm(f"{name}-done")),
        ("delete what rm left", lambda: store.reaper.run(everywhere=False)),
    ]


def mounted_at_once(disk: Path, mounts: int, targets: Targets) -> None:
    """Limited layers mounted together, and what an idle one costs."""
    with Store(disk / "mounted", policy=POLICY) as store:
        store.create("new")
        store.commit("new", "base")
        before = memory()
        times = []
        for number in range(mounts):
            store.create(f"{number}", "base", limit=LIMIT)
            times.append(timed(lambda number=number: store.mount(f"{number}")))  # type: ignore[misc]
        images = [path.stat().st_blocks / 2 for path in (store.root / "containers_quota").iterdir()]
        after = memory()
        tenth = max(mounts // 10, 1)
        growth = statistics.median(times[-tenth:]) / statistics.median(times[:tenth])
        targets.say(f"mount: the last of {mounts} held at once / the first", growth, "×", 2.0)
        openings = [timed(lambda: Store(store.root).close()) for _ in range(9)]
        targets.say("opening a store with them", statistics.median(openings) * 1e3, "ms", 10.0)
        targets.say("an idle layer on disk: its image", statistics.mean(images), "KiB")
        available = (before["MemAvailable"] - after["MemAvailable"]) / mounts
        targets.say("an idle mounted layer in memory (with its image, here)", available, "KiB")
        store.driver.cleanup()


def on_disk(directory: Path, rounds: int, targets: Targets) -> None:
    """What has a target in milliseconds, on a real disk: commit of a clean layer, and rm of a large one."""
    directory.mkdir()
    with Store(directory / "root", policy=POLICY) as store:
        store.create("new")
        store.commit("new", "base")
        commits, removals = [], []
        for number in range(rounds):
            name = f"{number}"
            store.create(name, "base", limit=Limit(512 * MIB))
            with store.mounted(name) as path:
                (path / "data").write_bytes(b"x" * (64 * MIB if number % 10 == 0 else MIB))
            os.sync()
            commits.append(timed(lambda name=name: store.commit(name, f"{name}-done")))  # type: ignore[misc]
            removals.append(timed(lambda name=name: store.rm(f"{name}-done")))  # type: ignore[misc]
            store.reaper.run(everywhere=False)
        targets.say("commit, nothing dirty", statistics.median(commits) * 1e3, "ms", COMMIT_MS)
        targets.say("rm, small", statistics.median(removals) * 1e3, "ms", REMOVE_MS)
        targets.say("rm, 64 MiB written", statistics.median(removals[::10]) * 1e3, "ms", REMOVE_MS)
