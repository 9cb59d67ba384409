"""Images made on the spot: OCI layouts in one tar, which ``ctr images import`` and ``docker load`` take."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BUSYBOX = Path("/bin/busybox")
TEST_IMAGE = "localhost/test:1"
PAUSE_IMAGE = "localhost/pause:1"
APPLETS = (
    *("sh", "cat", "chmod", "chown", "cp", "dd", "df", "echo", "false", "id", "kill", "ls", "mkdir", "mv"),
    *("rm", "sed", "sleep", "stat", "sync", "touch", "true"),
)

Compression = Literal["gzip", "zstd"]
_PACK: dict[Compression, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "zstd": zstd.compress,
}
_OCI = "application/vnd.oci.image"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

File = tuple[
    str, bytes | str | None, int
]  # a name, content (text: target of a symlink; None: directory), mode


def layer(*files: File) -> bytes:
    """A layer tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, mode in files:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def busybox_layers() -> list[bytes]:
    """A small system; over it a layer that deletes ``/old/gone``, hides ``/hidden/below``, adds ``/new``."""
    below = layer(
        *[(name, None, 0o755) for name in ("bin", "dev", "etc", "hidden", "old", "proc", "root", "sys")],
        ("tmp", None, 0o1777),
        ("bin/busybox", BUSYBOX.read_bytes(), 0o755),
        *[(f"bin/{name}", "busybox", 0o777) for name in APPLETS],
        ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644),
        ("etc/group", b"root:x:0:\n", 0o644),
        ("hidden/below", b"below\n", 0o644),
        ("old/gone", b"gone\n", 0o644),
        ("old/kept", b"kept\n", 0o644),
    )
    above = layer(
        ("hidden", None, 0o755),
        ("hidden/.wh..wh..opq", b"", 0o644),
        ("hidden/above", b"above\n", 0o644),
        ("new", b"new\n", 0o644),
        ("old", None, 0o755),
        ("old/.wh.gone", b"", 0o644),
    )
    return [below, above]


def pause_layers() -> list[bytes]:
    return [layer(("bin", None, 0o755), ("bin/busybox", BUSYBOX.read_bytes(), 0o755))]


def archive(
    path: Path,
    name: str,
    layers: list[bytes],
    *,
    command: tuple[str, ...] = ("/bin/sh",),
    annotations: dict[str, str] | None = None,
    compression: Compression = "gzip",
) -> Path:
    """Writes an image to ``path``; ``annotations`` stand on every layer's descriptor."""
    blobs: dict[str, bytes] = {}

    def blob(media: str, data: bytes, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{_OCI}.{media}", "digest": f"sha256:{digest}", "size": len(data), **more}

    noted = {"annotations": annotations} if annotations else {}
    packed = [blob(f"layer.v1.tar+{compression}", _PACK[compression](data), **noted) for data in layers]
    config = {
        "architecture": _MACHINES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(x).hexdigest()}" for x in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": packed,
    }
    described = blob(
        "manifest.v1+json",
        json.dumps(manifest).encode(),
        platform={"architecture": _MACHINES[platform.machine()], "os": "linux"},
        annotations={"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
    )
    index = {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": [described]}
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index).encode(),
        **blobs,
    }
    path.write_bytes(layer(*[(name, data, 0o644) for name, data in files.items()]))
    return path


def test_image(directory: Path) -> Path:
    return archive(directory / "test.tar", TEST_IMAGE, busybox_layers())


def pause_image(directory: Path) -> Path:
    """What CRI starts in each sandbox; any program that waits for SIGTERM will do."""
    command = ("/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do busybox sleep 3600 & wait; done")
    return archive(directory / "pause.tar", PAUSE_IMAGE, pause_layers(), command=command)
