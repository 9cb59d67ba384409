"""Containers on layerlimit beside containerd's own overlayfs: calls, container starts, pulls, memory.

A current containerd (scripts/engines) runs on the disk to measure, with ``layerlimit serve`` behind it as two
classes: ``limited`` gives every container a hard limit of 1 GiB, ``free`` none. The snapshotters take turns
in every round. Calls go through containerd, whose database has the same part in all of them; a removal there
only marks, so that of layerlimit is timed on its own socket. A pull is one from a registry on this machine,
of a Debian root file system, an npm tree of 25,000 files and an upgrade of that tree.

containerd's erofs snapshotter takes part where mkfs.erofs is 1.8 or later.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests import scratch
from tests.archive import real
from tests.engines import daemons, image, wire
from tests.engines.daemons import CURRENT, Containerd, Snapshotter
from tests.engines.island import Island, island

ROOT = Path(__file__).parents[1]
LIMITED, FREE, OVERLAYFS, EROFS = "limited", "free", "overlayfs", "erofs"
ASIDE = "aside"  # limited to 64 MiB, and unknown to containerd, which collects what it does not know
KEPT = {"containerd.io/gc.root": "bench"}  # or containerd collects it
STORM_FACTOR = 1.1  # limited containers, against unlimited ones of overlayfs
PULL_FACTOR = 1.0
MEMORY_MIB = 80


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its tables; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench snapshotter", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200, help="snapshots in the table of calls")
    parser.add_argument(
        "--snapshots", type=int, default=1000, help="how many the daemon has when it is weighed"
    )
    parser.add_argument("--only", action="append", choices=["calls", "starts", "pulls", "memory"])
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    options = parser.parse_args(arguments)
    wanted = options.only or ["calls", "starts", "pulls", "memory"]
    scratch.enter_mount_namespace()
    directory = Path(tempfile.mkdtemp(prefix="layerlimit-bench-", dir=options.directory))
    met = True
    try:
        with island(directory) as ground:
            engine, layerlimit = _engines(ground)
            names = [OVERLAYFS, FREE, LIMITED, *([EROFS] if _has_erofs() else [])]
            print(f"containerd {CURRENT.version}, {', '.join(names)}; {options.rounds} rounds")
            test = image.test_image(directory)
            for name in names:
                engine.load(test, name)
            if "calls" in wanted:
                _calls(engine, layerlimit, names, options.calls)
            if "starts" in wanted:
                met &= _starts(engine, names, options.rounds)
            if "pulls" in wanted:
                met &= _pulls(engine, names, options.rounds)
            if "memory" in wanted:
                met &= _memory(layerlimit, options.snapshots)
    finally:
        # What is bare below a limited layer's mount is kept immutable.
        subprocess.run(["chattr", "-R", "-f", "-i", directory], check=False)
        shutil.rmtree(directory)
    if not met:
        sys.exit(1)


def _engines(ground: Island) -> tuple[Containerd, Snapshotter]:
    options = ("--containerd", ground.directory / "ctd.sock")
    layerlimit = Snapshotter(ground, (f"{LIMITED}=1GiB", FREE, f"{ASIDE}=64MiB"), options).start()
    return Containerd(ground, CURRENT, (LIMITED, FREE), layerlimit.socket).start(), layerlimit


def _has_erofs() -> bool:
    if not shutil.which("mkfs.erofs"):
        return False
    said = subprocess.run(["mkfs.erofs", "--version"], check=False, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (1, 8)


# -- calls --------------------------------------------------------------------------------------------


@dataclass
class Calls:
    """The snapshots service behind a socket, for one snapshotter; times of each call in seconds."""

    channel: grpc.Channel
    snapshotter: str
    namespace: str
    times: dict[str, list[float]]

    def __call__(self, method: str, fields: Mapping[int, object]) -> None:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/containerd.services.snapshots.v1.Snapshots/{method}"
        )
        request = wire.encode({1: self.snapshotter, **fields})
        start = time.perf_counter()
        call(request, timeout=60, metadata=(("containerd-namespace", self.namespace),))
        self.times.setdefault(method, []).append(time.perf_counter() - start)


def _life(calls: Calls, key: str) -> None:
    """A snapshot is made, mounted, frozen and removed."""
    calls("Prepare", {2: key, 4: KEPT})
    calls("Mounts", {2: key})
    calls("Commit", {2: f"{key}-frozen", 3: key, 4: KEPT})
    calls("Remove", {2: f"{key}-frozen"})


def _calls(engine: Containerd, layerlimit: Snapshotter, names: Sequence[str], count: int) -> None:
    through: dict[str, Calls] = {}
    with (
        grpc.insecure_channel(f"unix://{engine.address}") as whole,
        grpc.insecure_channel(f"unix://{layerlimit.socket}") as own,
    ):
        for name in names:
            through[f"{name} through containerd"] = Calls(whole, name, engine.island.cgroup, {})
        through["limited at its socket"] = Calls(own, ASIDE, engine.island.cgroup, {})
        for number in range(count):
            for calls in through.values():
                _life(calls, f"bench-{number}")
    print(f"\nmilliseconds per call, of {count}: half are faster, one in a hundred is slower")
    for way, calls in through.items():
        for method, times in calls.times.items():
            ordered = sorted(times)
            half, most = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
            print(f"  {way:28} {method:8} {half * 1000:8.2f} {most * 1000:8.2f}")


# -- containers ---------------------------------------------------------------------------------------


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _run(engine: Containerd, snapshotter: str, id: str) -> None:
    done = engine.run(id, image.TEST_IMAGE, "/bin/true", snapshotter=snapshotter)
    assert done.returncode == 0, done.stderr


def _starts(engine: Containerd, names: Sequence[str], rounds: int) -> bool:
    def sequence(name: str) -> None:
        for number in range(30):
            _run(engine, name, f"sequence-{name}-{number}")

    def storm(name: str) -> None:
        with ThreadPoolExecutor(100) as threads:
            list(threads.map(lambda number: _run(engine, name, f"storm-{name}-{number}"), range(100)))

    met = True
    for what, work in (("30 containers, one after the other", sequence), ("100 containers at once", storm)):
        times = _rounds(names, rounds, work)
        print(f"\nseconds for {what}: median, fastest")
        _table(times)
        met &= _against(times, STORM_FACTOR, what)
    return met


def _rounds(names: Sequence[str], rounds: int, work: Callable[[str], None]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(_timed(lambda name=name: work(name)))  # type: ignore[misc]
    return times


def _table(times: Mapping[str, Sequence[float]]) -> None:
    for name, taken in times.items():
        print(f"  {name:12} {statistics.median(taken):7.2f} {min(taken):7.2f}")


def _against(times: Mapping[str, Sequence[float]], factor: float, what: str) -> bool:
    # Of the same round: what else the machine does hits both.
    ratio = statistics.median(
        ours / theirs for ours, theirs in zip(times[LIMITED], times[OVERLAYFS], strict=True)
    )
    print(f"  {LIMITED} takes {ratio:.2f} × {OVERLAYFS} for {what}; target: at most {factor}")
    return ratio <= factor


# -- pulls --------------------------------------------------------------------------------------------


def _layers(directory: Path) -> list[bytes]:
    """The real layers as tars of the OCI form."""
    tars = []
    for name, source in (
        ("debian", real.debian()),
        ("npm", real.npm().base),
        ("upgrade", real.npm().upgrade),
    ):
        tree, packed = directory / name, directory / f"{name}.tar"
        tree.mkdir()
        real.unpack(source, tree)
        line: list[str | Path] = [sys.executable, "-m", "bench._archive_run", "write", tree, packed, "plain"]
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
        tars.append(packed.read_bytes())
        shutil.rmtree(tree)
        packed.unlink()
    return tars


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _pulls(engine: Containerd, names: Sequence[str], rounds: int) -> bool:
    ground = engine.island
    port = _free_port()
    daemons.registry(ground, port)
    name = f"127.0.0.1:{port}/real:1"
    made = image.archive(ground.directory / "real.tar", name, _layers(ground.directory))
    engine.ctr("images", "import", "--local", "--no-unpack", made, seconds=600)
    engine.ctr("images", "push", "--plain-http", name, seconds=600)
    made.unlink()

    def forget() -> None:
        engine.ctr("images", "rm", "--sync", name, seconds=600)

    def pull(snapshotter: str) -> None:
        engine.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, name, seconds=600)

    forget()
    times: dict[str, list[float]] = {snapshotter: [] for snapshotter in names}
    for _ in range(rounds):
        for snapshotter in names:
            times[snapshotter].append(_timed(lambda snapshotter=snapshotter: pull(snapshotter)))  # type: ignore[misc]
            forget()
            subprocess.run(["sync"], check=True)
    print("\nseconds to pull and unpack three real layers: median, fastest")
    _table(times)
    return _against(times, PULL_FACTOR, "a pull")


# -- memory -------------------------------------------------------------------------------------------


def _memory(layerlimit: Snapshotter, count: int) -> bool:
    with grpc.insecure_channel(f"unix://{layerlimit.socket}") as channel:
        calls = Calls(channel, ASIDE, "bench", {})
        for number in range(count):
            calls("Prepare", {2: f"bench/{number}/weighed"})
            calls("Mounts", {2: f"bench/{number}/weighed"})
    status = Path(f"/proc/{layerlimit.daemon.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    print(f"\n{resident / 1024:.0f} MiB resident with {count} snapshots; target: at most {MEMORY_MIB}")
    return resident <= MEMORY_MIB * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
