"""Containers on layerlimit beside containerd's own overlayfs and erofs: calls, starts, pulls, memory.

A current containerd (scripts/engines) runs on the disk to measure, with ``layerlimit serve`` behind it as
two classes: ``limited`` gives every container a hard limit of 1 GiB, ``free`` none. containerd's erofs
snapshotter (scripts/erofs) limits every container to 1 GiB, too. The snapshotters take turns in every round,
of which each begins with another one.
Calls go through containerd, whose database has the same part in all of them; a removal there only marks, so
that of layerlimit is timed on its own socket. Processor time is that of the daemons with what they ran to its
end, from the beginning of one turn to that of the next, so with what is deleted later.

A pull is one from a registry on this machine, of a Debian root file system, an npm tree of 25,000 files and
an upgrade of that tree. Those of layerlimit are unpacked by its differ. layerlimit syncs a layer before it is
committed and containerd does not: a pull counts until a sync of the disk returns as well. ext4 without a
journal searches long among what was deleted lately: where a disk has none, give a ``--filesystem``.
"""

from __future__ import annotations

import argparse
import os
import shutil
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
from tests.engines.daemons import CACHE, CURRENT, Containerd, Snapshotter, unused_port
from tests.engines.island import Island, island

ROOT = Path(__file__).parents[1]
LIMITED, FREE, OVERLAYFS, EROFS = "limited", "free", "overlayfs", "erofs"
EROFS_TOOLS = CACHE.parent / "erofs/bin"
EROFS_CONFIGURATION = """
[plugins."io.containerd.snapshotter.v1.erofs"]
  default_size = "1GiB"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["erofs", "walking"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
  differ = "walking"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "erofs"
  differ = "erofs"
"""
ASIDE = "aside"  # limited to 64 MiB, and unknown to containerd, which collects what it does not know
KEPT = {"containerd.io/gc.root": "bench"}  # or containerd collects it
STORM_FACTOR = 1.1  # limited containers, against unlimited ones of overlayfs
PULL_FACTOR = 1.0
COMPRESSIONS: tuple[image.Compression, ...] = ("gzip", "zstd")
SETTLE = 1.5  # seconds in which the daemon deletes what was removed
MEMORY_MIB = 80
DISK_BYTES = 600 << 30  # every limit is promised room


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its tables; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench snapshotter", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="of starts; pulls take one less")
    parser.add_argument("--calls", type=int, default=150, help="snapshots in the table of calls")
    parser.add_argument(
        "--snapshots", type=int, default=1000, help="how many the daemon has when it is weighed"
    )
    parser.add_argument("--only", action="append", choices=["calls", "starts", "pulls", "memory"])
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument(
        "--filesystem",
        choices=["ext4", "xfs"],
        help="make one of this kind in a file on that disk, and use it",
    )
    options = parser.parse_args(arguments)
    wanted = options.only or ["calls", "starts", "pulls", "memory"]
    subprocess.run([ROOT / "scripts/erofs"], check=True)
    os.environ["PATH"] = f"{EROFS_TOOLS}:{os.environ['PATH']}"
    scratch.enter_mount_namespace()
    directory = Path(tempfile.mkdtemp(prefix="layerlimit-bench-", dir=options.directory))
    met = True
    try:
        if options.filesystem:
            _make_filesystem(directory, options.filesystem)
        with island(directory) as ground:
            engine, layerlimit = _engines(ground)
            names = [OVERLAYFS, FREE, LIMITED, EROFS]
            print(f"containerd {CURRENT.version}, {', '.join(names)}; {options.rounds} rounds")
            test = image.test_image(directory)
            for name in names:
                engine.load(test, name)
            if "calls" in wanted:
                _calls(engine, layerlimit, names, options.calls)
            if "starts" in wanted:
                met &= _starts(engine, layerlimit, names, options.rounds)
            if "pulls" in wanted:
                met &= _pulls(engine, layerlimit, [OVERLAYFS, LIMITED, EROFS], max(1, options.rounds - 1))
            if "memory" in wanted:
                met &= _memory(layerlimit, options.snapshots)
    finally:
        # What is bare below a limited layer's mount is kept immutable.
        subprocess.run(["chattr", "-R", "-f", "-i", directory], check=False)
        if options.filesystem:
            subprocess.run(["umount", directory], check=False)
            Path(f"{directory}.disk").unlink(missing_ok=True)
        shutil.rmtree(directory)
    if not met:
        sys.exit(1)


def _make_filesystem(directory: Path, kind: str) -> None:
    """At ``directory``, which goes with our mount namespace; its file is ``<directory>.disk``, with holes."""
    disk = Path(f"{directory}.disk")
    with disk.open("xb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run([f"mkfs.{kind}", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, directory], check=True)


def _engines(ground: Island) -> tuple[Containerd, Snapshotter]:
    state = ground.directory / "state"
    state.mkdir()
    ground.run("mount", "-t", "tmpfs", "tmpfs", state)  # as is /run, where it usually is
    options = ("--containerd", ground.directory / "ctd.sock")
    layerlimit = Snapshotter(ground, (f"{LIMITED}=1GiB", FREE, f"{ASIDE}=64MiB"), options).start()
    names = (LIMITED, FREE)
    engine = Containerd(
        ground, CURRENT, names, layerlimit.socket, differ=True, more=EROFS_CONFIGURATION
    ).start()
    return engine, layerlimit


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


def _starts(engine: Containerd, layerlimit: Snapshotter, names: Sequence[str], rounds: int) -> bool:
    daemons = (layerlimit.daemon.pid, engine.daemon.pid)

    def sequence(name: str) -> None:
        for number in range(30):
            _run(engine, name, f"sequence-{name}-{number}")

    def storm(name: str) -> None:
        with ThreadPoolExecutor(100) as threads:
            list(threads.map(lambda number: _run(engine, name, f"storm-{name}-{number}"), range(100)))

    met = True
    for what, count, work in (
        ("30 containers, one after the other", 30, sequence),
        ("100 containers at once", 100, storm),
    ):
        times, used = _rounds(names, rounds, work, daemons)
        print(f"\nseconds for {what}: median, fastest;")
        print("  milliseconds of processor per container: layerlimit's daemon, containerd's")
        for name, taken in times.items():
            ours, theirs = (1000 * seconds / count / rounds for seconds in used[name])
            print(f"  {name:12} {statistics.median(taken):7.2f} {min(taken):7.2f}  {ours:7.1f} {theirs:7.1f}")
        met &= _against(times, OVERLAYFS, STORM_FACTOR, what)
    return met


def _rounds(
    names: Sequence[str], rounds: int, work: Callable[[str], None], daemons: Sequence[int]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each round, and processor seconds of each daemon in all of them, by snapshotter."""
    times: dict[str, list[float]] = {name: [] for name in names}
    used = {name: [0.0 for _ in daemons] for name in names}
    for number in range(rounds):
        for name in _turns(names, number):
            before = list(map(_processor, daemons))
            times[name].append(_timed(lambda name=name: work(name)))  # type: ignore[misc]
            time.sleep(SETTLE)  # what was removed is deleted
            for which, pid in enumerate(daemons):
                used[name][which] += _processor(pid) - before[which]
    return times, used


def _turns(names: Sequence[str], number: int) -> list[str]:
    """The order of a round. Nobody is always the one who comes after what another has left behind."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def _processor(pid: int) -> float:
    """Seconds that a process, its threads and its children that have ended were running."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _against(times: Mapping[str, Sequence[float]], peer: str, factor: float, what: str) -> bool:
    # Of the same round: what else the machine does hits both.
    ratio = statistics.median(ours / theirs for ours, theirs in zip(times[LIMITED], times[peer], strict=True))
    print(f"  {LIMITED} takes {ratio:.2f} × {peer} for {what}; target: at most {factor}")
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


def _pulls(engine: Containerd, layerlimit: Snapshotter, names: Sequence[str], rounds: int) -> bool:
    port = unused_port()
    daemons.registry(engine.island, port)
    layers = _layers(engine.island.directory)
    met = True
    for compression in COMPRESSIONS:
        name = f"127.0.0.1:{port}/real:{compression}"
        made = image.archive(engine.island.directory / "real.tar", name, layers, compression=compression)
        engine.ctr("images", "import", "--local", "--no-unpack", made, seconds=600)
        engine.ctr("images", "push", "--plain-http", name, seconds=600)
        made.unlink()
        _forget(engine, name)
        pulls = _pull_in_turns(engine, layerlimit, names, name, rounds)
        print(
            f"\nseconds to pull and unpack three real layers ({compression}): until it says so, until all is"
        )
        print("  on disk, and of processor, layerlimit's daemon and containerd; medians")
        for snapshotter, taken in pulls.items():
            columns = map(statistics.median, zip(*taken, strict=True))
            print(f"  {snapshotter:12}" + "".join(f" {column:7.2f}" for column in columns))
        durable = {snapshotter: [each[1] for each in taken] for snapshotter, taken in pulls.items()}
        for peer in names:
            if peer != LIMITED:
                met &= _against(durable, peer, PULL_FACTOR, f"a durable pull ({compression})")
    return met


def _forget(engine: Containerd, name: str) -> None:
    engine.ctr("images", "rm", "--sync", name, seconds=600)
    time.sleep(SETTLE)
    os.sync()


def _pull_in_turns(
    engine: Containerd, layerlimit: Snapshotter, names: Sequence[str], name: str, rounds: int
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Of each pull the seconds until it has ended and until a sync has, and of processor, by snapshotter."""
    pids = (layerlimit.daemon.pid, engine.daemon.pid)
    pulls: dict[str, list[tuple[float, float, float, float]]] = {snapshotter: [] for snapshotter in names}
    for number in range(rounds):
        for snapshotter in _turns(names, number):
            ours, theirs = map(_processor, pids)
            start = time.perf_counter()
            engine.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, name, seconds=600)
            said = time.perf_counter() - start
            os.sync()
            durable = time.perf_counter() - start
            used = (_processor(pids[0]) - ours, _processor(pids[1]) - theirs)
            pulls[snapshotter].append((said, durable, *used))
            _forget(engine, name)
    return pulls


# -- memory -------------------------------------------------------------------------------------------


def _memory(layerlimit: Snapshotter, count: int) -> bool:
    print(f"\n{_resident(layerlimit):.0f} MiB resident after all that; the daemon is started anew")
    layerlimit.restart()
    with grpc.insecure_channel(f"unix://{layerlimit.socket}") as channel:
        calls = Calls(channel, ASIDE, "bench", {})
        for number in range(count):
            calls("Prepare", {2: f"bench/{number}/weighed"})
            calls("Mounts", {2: f"bench/{number}/weighed"})
    resident = _resident(layerlimit)
    print(f"{resident:.0f} MiB resident with {count} snapshots; target: at most {MEMORY_MIB}")
    return resident <= MEMORY_MIB


def _resident(layerlimit: Snapshotter) -> float:
    """MiB of the daemon in memory."""
    status = Path(f"/proc/{layerlimit.daemon.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
