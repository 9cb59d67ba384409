"""A limited layer, created and mounted: through the driver, by the Go driver's recipe, by bare system calls.

The ways take turns in every round, on one disk, each with a fresh id; only until the mount is usable is
timed, taking down comes after. The *recipe* is what the Go driver ran for a layer with a quota: truncate,
mkfs.ext4, mount -o loop, with overlay mounted by mount(8) in place of AUFS; it syncs nothing. The *bare*
system calls copy a template, attach, mount and stack it and nothing else: no locks, no checks, no records; a
second row does the same with the image, its name, a record and a chain made durable, which is the least that
survives a crash.

The cost of an idle layer is that of many, mounted, divided by their number.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from layerlimit import Driver, Limit
from layerlimit.limit import parse_size
from layerlimit.linux import files, loop, mount
from layerlimit.union import Overlay, Stack

RECIPE_FACTOR = 3.0  # at least this much faster than the recipe
BARE_FACTOR = 2.0  # at most this much slower than the bare system calls


@dataclass
class Way:
    """One way to make a layer ``id`` and to take it down again; ``times`` in seconds."""

    name: str
    make: Callable[[str], None]
    unmake: Callable[[str], None]
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    def turn(self, id: str) -> None:
        start = time.perf_counter()
        self.make(id)
        self.times.append(time.perf_counter() - start)
        self.unmake(id)


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its tables; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench driver", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--limit", default="10GiB")
    parser.add_argument("--layers", type=int, default=100, help="how many idle layers to measure")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="layerlimit-bench-", dir=options.directory))
    try:
        met = compare(directory, parse_size(options.limit), options.rounds)
        idle(directory, parse_size(options.limit), options.layers)
    finally:
        for root in directory.glob("root-*"):
            take_down(Driver(root))
        shutil.rmtree(directory)
    if not met:
        sys.exit(1)


def take_down(driver: Driver) -> None:
    driver.cleanup()
    for id in sorted(driver.ids(), key=lambda id: id == "base"):
        driver.remove(id)


# -- the ways -----------------------------------------------------------------------------------------


def by_driver(root: Path, limit: Limit | None) -> Way:
    driver = Driver(root)
    if not driver.exists("base"):
        driver.create("base")

    def make(id: str) -> None:
        driver.create(id, "base", limit=limit)
        driver.get(id)

    def unmake(id: str) -> None:
        driver.put(id)
        driver.remove(id)

    return Way("driver, unlimited" if limit is None else "driver, limited", make, unmake)


def program(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def by_recipe(root: Path, size: int) -> Way:
    lower = root / "lower"
    lower.mkdir(parents=True)

    def make(id: str) -> None:
        image, inside, target = root / f"{id}.ext4", root / f"{id}.diff", root / f"{id}.mnt"
        inside.mkdir()
        target.mkdir()
        program("truncate", "-s", str(size), image)
        program("mkfs.ext4", "-q", "-F", image)
        program("mount", "-o", "loop", image, inside)
        (inside / "upper").mkdir()
        (inside / "work").mkdir()
        layers = f"lowerdir={lower},upperdir={inside}/upper,workdir={inside}/work"
        program("mount", "-t", "overlay", "overlay", "-o", layers, target)

    def unmake(id: str) -> None:
        program("umount", root / f"{id}.mnt", root / f"{id}.diff")
        (root / f"{id}.ext4").unlink()
        (root / f"{id}.mnt").rmdir()
        (root / f"{id}.diff").rmdir()

    return Way("the Go driver's recipe", make, unmake)


def by_calls(root: Path, template: Path, *, durable: bool) -> Way:
    lower = root / "lower"
    lower.mkdir(parents=True)
    union = Overlay()

    def make(id: str) -> None:
        image, inside, target = root / f"{id}.ext4", root / f"{id}.img", root / f"{id}.mnt"
        source = os.open(template, os.O_RDONLY | os.O_CLOEXEC)
        fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            files.copy_sparse(source, fd, os.fstat(source).st_size)
            if durable:
                os.fsync(fd)
                files.sync_directory(root)
                files.write_durably(root / f"{id}.record", b"{}\n")
                files.write_durably(root / f"{id}.chain", b"lower\n")
            inside.mkdir()
            target.mkdir()
            with loop.attach(fd, image) as device, mount.FsContext("ext4") as context:
                context.set_string("source", device.path)
                context.set_flag("discard")
                context.set_flag("noinit_itable")
                context.create()
                with context.mount() as mounted:
                    mounted.attach(inside)
        finally:
            os.close(fd)
            os.close(source)
        union.mount(Stack((lower,), inside / "upper", inside / "work"), target)

    def unmake(id: str) -> None:
        union.unmount(root / f"{id}.mnt")
        mount.unmount(root / f"{id}.img")
        (root / f"{id}.ext4").unlink()
        (root / f"{id}.mnt").rmdir()
        (root / f"{id}.img").rmdir()
        for name in ("record", "chain"):
            (root / f"{id}.{name}").unlink(missing_ok=True)

    return Way("bare system calls, durable" if durable else "bare system calls", make, unmake)


def compare(directory: Path, size: int, rounds: int) -> bool:
    """Let the ways take turns and print their times; whether the targets are met."""
    limited = by_driver(directory / "root-limited", Limit(size))
    limited.turn("first")  # makes the template
    limited.times.clear()
    (template,) = (directory / "root-limited/templates").glob("*.ext4")
    recipe = by_recipe(directory / "recipe", size)
    bare = by_calls(directory / "bare", template, durable=False)
    durable = by_calls(directory / "durable", template, durable=True)
    plain = by_driver(directory / "root-limited", None)
    ways = [limited, recipe, bare, durable, plain]
    for number, way in itertools.product(range(rounds), ways):
        way.turn(f"layer{number}")

    print(
        f"create and mount a layer of {size >> 20} MiB, {rounds} rounds on {directory.parent}, milliseconds"
    )
    print(f"{'':28} {'median':>8} {'p90':>8} {'driver =':>9}")
    for way in ways:
        ninth = sorted(way.times)[int(len(way.times) * 0.9)]
        ratio = limited.median / way.median
        print(f"{way.name:28} {way.median * 1e3:8.1f} {ninth * 1e3:8.1f} {ratio:8.2f}×")
    faster = recipe.median / limited.median
    slower = limited.median / bare.median
    targets = [
        (f"{faster:.1f} times faster than the recipe (at least {RECIPE_FACTOR:g})", faster >= RECIPE_FACTOR),
        (f"{slower:.1f} times the bare system calls (at most {BARE_FACTOR:g})", slower <= BARE_FACTOR),
    ]
    for text, met in targets:
        print(f"{'met' if met else 'MISSED':7} {text}")
    return all(met for _, met in targets)


# -- what an idle layer costs -----------------------------------------------------------------------------


def memory() -> dict[str, int]:
    """KiB of /proc/meminfo, without what only caches the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def idle(directory: Path, size: int, layers: int, *, repeats: int = 3) -> None:
    """Mount many layers, write nothing, and print what each costs: the median of some repetitions."""
    driver = Driver(directory / "root-limited")
    rows: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        before = memory()
        ids = [f"idle{number}" for number in range(layers)]
        for id in ids:
            driver.create(id, "base", limit=Limit(size))
            driver.get(id)
        os.sync()
        images = [(driver.root / f"containers_quota/{id}.ext4").stat().st_blocks / 2 for id in ids]
        after = memory()
        rows.append(
            (
                statistics.mean(images),
                (before["MemAvailable"] - after["MemAvailable"]) / layers,
                (after["SUnreclaim"] - before["SUnreclaim"]) / layers,
            )
        )
        for id in ids:
            driver.put(id)
            driver.remove(id)
    image, available, objects = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"an idle, mounted layer of {size >> 20} MiB, mean of {layers}, KiB (memory: of an idle machine only)"
    )
    print(f"{'disk: its image':28} {image:8.0f}")
    print(f"{'memory: less available':28} {available:8.0f}")
    print(f"{'memory: kernel objects':28} {objects:8.0f}")
