"""Layer tars: apply, export and changes, beside GNU tar, umoci, containerd and containers-storage.

The layers are real ones (tests/archive/real.py): a Debian root file system, an npm tree of 25,000 files, its
upgrade; and eight files of 64 MiB. Every engine runs as a process of its own on the same bytes in the page
cache, one after the other in each round, with a fresh directory for its result; the median of the rounds
counts. The minimum stands beside it, and the processor seconds (user and system): on a machine that others
use too, only these say something. On disk everybody ends an apply with syncfs (``sync -f`` where the engine
has none); on tmpfs that is nothing to anybody. Engines that compute digests do; GNU tar has none. Of our
process the call is measured, without the start of the interpreter, which is printed; of the others the whole.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.archive import peers, real

ROOT = Path(__file__).parents[1]
BUILT = ROOT / ".cache/bench"
STORAGE = "go.podman.io/storage/cmd/containers-storage@v1.65.0"
COMPRESSIONS = ("plain", "gzip", "zstd")
RUNNER = [sys.executable, "-m", "bench._archive_run"]


@dataclass(frozen=True)
class Took:
    """One run."""

    seconds: float
    cpu: float  # user and system seconds
    peak: int  # KiB of resident memory
    over: int = 0  # of it beyond the interpreter and its modules, where that is known


@dataclass(frozen=True)
class Engine:
    """Somebody who can do the work; ``run`` gets a fresh directory, the input and the compression."""

    name: str
    run: Callable[[Path, Path, str], Took]
    compressions: tuple[str, ...] = COMPRESSIONS


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m bench archive", description=__doc__)
    parser.add_argument("--layers", default="debian,npm,upgrade,large")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compressions", default=",".join(COMPRESSIONS))
    parser.add_argument("--only", default="apply,write,changes", help="what to measure")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"))
    given = parser.parse_args(arguments)
    names, only = given.layers.split(","), given.only.split(",")
    compressions = given.compressions.split(",")
    _build()
    print(f"interpreter and modules: {_start_of_interpreter():.2f} s, not counted below")
    for kind, place in (("tmpfs", given.tmpfs), ("disk", given.disk)):
        with tempfile.TemporaryDirectory(prefix="layerlimit-bench-", dir=place) as name:
            base = Path(name)
            for layer in names:
                prepared = _prepare(base, layer, compressions)
                if "apply" in only:
                    for compression in compressions:
                        title = f"apply {layer} {compression}, {kind}"
                        _table(
                            title,
                            _apply_engines(),
                            base,
                            prepared.archives[compression],
                            compression,
                            given.rounds,
                        )
                if "write" in only:
                    for compression in compressions:
                        title = f"write {layer} {compression}, {kind}"
                        _table(title, _write_engines(), base, prepared.tree, compression, given.rounds)
                shutil.rmtree(base / layer)
            if "changes" in only and kind == "tmpfs":
                _changes(base, given.rounds)


# ---- layers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    tree: Path
    archives: Mapping[str, Path]


def _prepare(base: Path, layer: str, compressions: list[str]) -> _Prepared:
    """The tree of a layer on the file system to measure on, and its tar by each compression."""
    directory = base / layer
    tree = directory / "tree"
    tree.mkdir(parents=True)
    match layer:
        case "debian":
            real.unpack(real.debian(), tree)
        case "npm":
            real.unpack(real.npm().base, tree)
        case "upgrade":
            real.unpack(real.npm().upgrade, tree)
        case "large":
            for number in range(8):
                with (tree / f"large{number}").open("wb") as out:
                    for _ in range(64):
                        out.write(os.urandom(1 << 14) * (1 << 6))  # compresses, but not to nothing
        case _:
            raise SystemExit(f"no layer {layer}")
    plain = directory / "layer.plain"
    subprocess.run([*RUNNER, "write", tree, plain, "plain"], cwd=ROOT, check=True, capture_output=True)
    archives = {"plain": plain}
    # As registries have them, and by nobody who is measured.
    for compression, command in (("gzip", ["gzip", "-6nc"]), ("zstd", ["zstd", "-3qc"])):
        if compression in compressions:
            archives[compression] = directory / f"layer.{compression}"
            with plain.open("rb") as source, archives[compression].open("wb") as target:
                subprocess.run(command, stdin=source, stdout=target, check=True)
    os.sync()
    files = sum(len(names) for _, _, names in os.walk(tree))
    print(f"\n{layer}: {files} files, tar of {plain.stat().st_size >> 20} MiB")
    return _Prepared(tree, archives)


# ---- engines -----------------------------------------------------------------------------------------


def _apply_engines() -> list[Engine]:
    return [
        Engine("layerlimit", _our_apply),
        Engine("GNU tar", _gnu_extract),
        Engine("containerd", _containerd_apply),
        Engine("umoci", _umoci_unpack, ("plain", "gzip")),
        Engine("containers-storage", _storage_apply),
    ]


def _write_engines() -> list[Engine]:
    return [
        Engine("layerlimit", _our_write),
        Engine("GNU tar", _gnu_create),
        Engine("containerd", _containerd_diff, ("plain",)),
    ]


def _our_apply(directory: Path, archive: Path, compression: str) -> Took:
    target = directory / "target"
    target.mkdir()
    return _ours("apply", target, "durable", stdin=archive)


def _gnu_extract(directory: Path, archive: Path, compression: str) -> Took:
    option = {"plain": [], "gzip": ["--gzip"], "zstd": ["--zstd"]}[compression]
    command: list[str | Path] = ["tar", *option, "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    return _timed([*command, "-xpf", archive, "-C", directory], then=["sync", "-f", directory])


def _containerd_apply(directory: Path, archive: Path, compression: str) -> Took:
    target = directory / "target"
    target.mkdir()
    return _timed([BUILT / "peers", "-sync", "apply", target], stdin=archive)


def _umoci_unpack(directory: Path, archive: Path, compression: str) -> Took:
    layout = _layout(directory / "layout", archive, compression)
    unpack: list[str | Path] = ["umoci", "raw", "unpack", "--image", f"{layout}:latest", directory / "target"]
    return _timed(unpack, then=["sync", "-f", directory])


def _storage_apply(directory: Path, archive: Path, compression: str) -> Took:
    # vfs: the same engine as under its overlay driver, which would leave a mount behind.
    storage: list[str | Path] = [BUILT / "containers-storage", "--storage-driver", "vfs"]
    storage += ["--graph", directory / "graph", "--run", directory / "run"]
    return _timed([*storage, "import-layer", "-f", archive], then=["sync", "-f", directory])


def _our_write(directory: Path, tree: Path, compression: str) -> Took:
    return _ours("write", tree, directory / "out", compression)


def _gnu_create(directory: Path, tree: Path, compression: str) -> Took:
    option = {"plain": [], "gzip": ["--gzip"], "zstd": ["--zstd"]}[compression]
    return _timed(["tar", *option, "--xattrs", "--numeric-owner", "-cf", directory / "out", "-C", tree, "."])


def _containerd_diff(directory: Path, tree: Path, compression: str) -> Took:
    (directory / "empty").mkdir()
    return _timed([BUILT / "peers", "diff", tree, directory / "empty"], stdout=directory / "out")


def _layout(directory: Path, archive: Path, compression: str) -> Path:
    """An OCI layout around the archive as it is."""
    layout = peers.oci_layout(directory, [])
    blobs = layout / "blobs/sha256"
    data = archive.read_bytes()
    plain = gzip.decompress(data) if compression == "gzip" else data
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"].partition(":")[2]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].partition(":")[2]).read_text())
    config["rootfs"]["diff_ids"] = [f"sha256:{hashlib.sha256(plain).hexdigest()}"]

    def blob(content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    media = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compression == "gzip" else "")
    manifest["layers"] = [{"mediaType": media, **blob(data)}]
    manifest["config"] |= blob(json.dumps(config).encode())
    index["manifests"][0] |= blob(json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))
    return layout


# ---- changes -----------------------------------------------------------------------------------------


def _changes(base: Path, rounds: int) -> None:
    """The list of 1,000 rewritten files, over images of 10,000 and of 100,000 files."""
    print("\nchanges: 1,000 files rewritten of")
    for files in (10_000, 100_000):
        lower, upper, whole = (base / f"{name}{files}" for name in ("lower", "upper", "whole"))
        names = [f"d{number % (files // 100)}/f{number}" for number in range(files)]
        _fill(lower, names, b"old")
        subprocess.run(["cp", "-a", lower, whole], check=True)
        for root in (upper, whole):
            _fill(root, names[:: files // 1000], b"new")
        for action, tree, what in (
            ("changes", upper, "upper directory"),
            ("compare", whole, "both trees walked"),
        ):
            took = [_ours(action, tree, lower).seconds for _ in range(rounds)]
            print(f"  {files:7,}  {what:18} {statistics.median(took):7.3f} s")
        for root in (lower, upper, whole):
            shutil.rmtree(root)


def _fill(root: Path, names: list[str], content: bytes) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


# ---- running -----------------------------------------------------------------------------------------


def _table(title: str, engines: list[Engine], base: Path, given: Path, compression: str, rounds: int) -> None:
    taking_part = [engine for engine in engines if compression in engine.compressions]
    took: dict[str, list[Took]] = {engine.name: [] for engine in taking_part}
    for _ in range(rounds):
        for engine in taking_part:
            with _fresh(base) as directory:
                took[engine.name].append(engine.run(directory, given, compression))
    print(f"\n{title}")
    ours = statistics.median(one.seconds for one in took["layerlimit"])
    for name, runs in took.items():
        seconds = statistics.median(one.seconds for one in runs)
        least = min(one.seconds for one in runs)
        cpu = statistics.median(one.cpu for one in runs)
        peak = max(one.peak for one in runs) >> 10
        over = (
            f" ({max(one.over for one in runs) >> 10} over the interpreter)" if name == "layerlimit" else ""
        )
        times = f"{seconds:7.2f} s  {seconds / ours:5.2f} ×  min {least:6.2f} s  cpu {cpu:6.2f} s"
        print(f"  {name:20} {times}  {peak:5} MiB{over}")


@contextmanager
def _fresh(base: Path) -> Iterator[Path]:
    directory = base / "run"
    directory.mkdir()
    try:
        yield directory
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)
        os.sync()  # what this run leaves behind is not the next one's burden


def _timed(
    command: list[str | Path],
    *,
    stdin: Path | None = None,
    stdout: Path | None = None,
    then: list[str | Path] | None = None,
) -> Took:
    with open(stdin or os.devnull, "rb") as source, open(stdout or os.devnull, "wb") as target:
        before, started = _cpu_of_children(), time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=target, stderr=subprocess.PIPE)
        peak = 0
        while process.poll() is None:
            # Not ru_maxrss: that of a child starts with what its parent had at the fork.
            peak = max(peak, _peak_of(process.pid))
            time.sleep(0.005)
        assert process.stderr
        with process.stderr as complaint:
            if process.returncode:
                raise SystemExit(f"{command}: exit code {process.returncode}: {complaint.read().decode()}")
        if then:
            subprocess.run(then, check=True)
        return Took(time.perf_counter() - started, _cpu_of_children() - before, peak)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak_of(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _ours(action: str, *arguments: str | Path, stdin: Path | None = None) -> Took:
    with open(stdin or os.devnull, "rb") as source:
        command = [*RUNNER, action, *arguments]
        done = subprocess.run(command, cwd=ROOT, stdin=source, check=True, capture_output=True)
    told = json.loads(done.stdout)
    return Took(told["seconds"], told["cpu"], told["after"], told["after"] - told["before"])


def _start_of_interpreter() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import bench._archive_run"], cwd=ROOT, check=True)
    return time.perf_counter() - started


def _build() -> None:
    """Build the programs to compare with; Go's cache makes it a moment the second time."""
    peers.containerd()
    if not (BUILT / "containers-storage").exists():
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(BUILT)}
        tags = "exclude_graphdriver_btrfs containers_image_openpgp"
        subprocess.run(["go", "install", "-trimpath", "-tags", tags, STORAGE], env=environment, check=True)
