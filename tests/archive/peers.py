"""Other people's tar programs, as readers and writers."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Extract = Callable[[Path, Path], None]
Create = Callable[[Path, Path], None]

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8"}


def run(*command: str | Path) -> str:
    """The standard output of ``command``; an AssertionError with its standard error when it fails."""
    done = subprocess.run(
        [os.fspath(part) for part in command],
        check=False,
        capture_output=True,
        env=_ENVIRONMENT,
        encoding="utf-8",
        errors="surrogateescape",
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}: {done.stderr}"
    return done.stdout


def gnu_extract(archive: Path, target: Path) -> None:
    """GNU tar: everything an archive holds into the existing directory ``target``."""
    run("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive, "-C", target)


def bsd_extract(archive: Path, target: Path) -> None:
    """bsdtar, the same."""
    run("bsdtar", "--numeric-owner", "-xpf", archive, "-C", target)


def gnu_create(root: Path, archive: Path) -> None:
    """GNU tar: everything in ``root`` into ``archive``, in pax format with nanoseconds and holes."""
    names = sorted(os.fsencode(name) for name in os.listdir(root))
    command = ["tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner"]
    _create([*command, "--null", "--no-unquote", "-cf"], root, archive, names)


def bsd_create(root: Path, archive: Path) -> None:
    """bsdtar, the same."""
    names = sorted(os.fsencode(name) for name in os.listdir(root))
    command = ["bsdtar", "--format=pax", "--numeric-owner", "--xattrs", "--read-sparse", "--null", "-cf"]
    _create(command, root, archive, names)


def _create(command: Sequence[str], root: Path, archive: Path, names: Sequence[bytes]) -> None:
    done = subprocess.run(
        [*command, os.fspath(archive), "-C", os.fspath(root), "-T", "-"],
        check=False,
        input=b"".join(b"./" + name + b"\0" for name in names),
        capture_output=True,
        env=_ENVIRONMENT,
    )
    assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}"


def oci_layout(directory: Path, layers: Sequence[bytes]) -> Path:
    """An OCI image layout in the fresh ``directory`` whose image ``latest`` has ``layers`` (plain tars)."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    prefix = "application/vnd.oci.image"
    described = [blob(gzip.compress(layer, 1, mtime=0), f"{prefix}.layer.v1.tar+gzip") for layer in layers]
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    config = blob(json.dumps(image).encode(), f"{prefix}.config.v1+json")
    manifest = blob(
        json.dumps({"schemaVersion": 2, "config": config, "layers": described}).encode(),
        f"{prefix}.manifest.v1+json",
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def umoci_unpack(layout: Path, bundle: Path) -> Path:
    """Unpack the image ``latest``; returns the root file system's path."""
    run("umoci", "unpack", "--image", f"{layout}:latest", bundle)
    return bundle / "rootfs"


def umoci_repack(layout: Path, bundle: Path) -> bytes:
    """What was changed in an unpacked bundle as a plain layer tar."""
    run("umoci", "repack", "--image", f"{layout}:repacked", bundle)
    index = json.loads((layout / "index.json").read_text())
    [entry] = [
        entry
        for entry in index["manifests"]
        if entry["annotations"]["org.opencontainers.image.ref.name"] == "repacked"
    ]
    manifest = json.loads(_blob(layout, entry["digest"]))
    return gzip.decompress(_blob(layout, manifest["layers"][-1]["digest"]))


def containerd() -> Path:
    """The program of ``bench/go``: the layer engine of a current containerd, built once per version."""
    source, built = _ROOT / "bench/go", _ROOT / ".cache/bench/peers"
    built.parent.mkdir(parents=True, exist_ok=True)
    # Go's own cache makes this a moment when nothing has changed.
    environment = {**os.environ, "CGO_ENABLED": "0"}
    command: list[str | Path] = ["go", "build", "-trimpath", "-o", built, "."]
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    return built


@contextmanager
def daemon_unpack(programs: Path, directory: Path, layout: Path) -> Iterator[Path]:
    """The image ``latest`` of an OCI layout, imported by a containerd of its own; yields where it is mounted.

    ``programs`` holds ``containerd`` and ``ctr``; everything lies in the fresh ``directory``.
    """
    directory.mkdir()
    config = directory / "config.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    # A socket's address is short, and directories of tests are deep.
    with tempfile.TemporaryDirectory(prefix="ctr", dir="/tmp") as short:
        socket = Path(short) / "socket"
        command: list[str | Path] = [programs / "containerd", "--config", config, "--address", socket]
        command += ["--root", directory / "root", "--state", directory / "state", "--log-level", "error"]
        with (directory / "log").open("wb") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            ctr = [os.fspath(programs / "ctr"), "--address", os.fspath(socket)]
            while not socket.exists():
                assert daemon.poll() is None, (directory / "log").read_text()
                time.sleep(0.02)
            archive, merged = directory / "layout.tar", directory / "merged"
            run("tar", "-cf", archive, "-C", layout, ".")
            run(*ctr, "images", "import", "--base-name", "peers.test/image", archive)
            merged.mkdir()
            run(*ctr, "images", "mount", "peers.test/image:latest", merged)
            try:
                yield merged
            finally:
                run(*ctr, "images", "unmount", merged)
        finally:
            daemon.terminate()
            daemon.wait()


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()
