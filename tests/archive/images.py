"""Images for tests: an OCI layout and a docker archive of given layers, right or wrong in chosen places."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    """A layer with these files; a name that ends in / is a directory."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            entry.mode = 0o755 if name.endswith("/") else 0o644
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def configuration(layers: Sequence[bytes], **changes: Any) -> bytes:
    """The configuration for these uncompressed layers."""
    found = {
        "os": "linux",
        "architecture": MACHINE,
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        **changes,
    }
    return json.dumps(found).encode()


@dataclass
class Layout:
    """An OCI layout that is being written."""

    path: Path
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "blobs/sha256").mkdir(parents=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.write_index()

    def write_index(self) -> None:
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(index))

    def blob(self, data: bytes) -> Path:
        return self.path / "blobs/sha256" / hashlib.sha256(data).hexdigest()

    def add(self, media_type: str, data: bytes, **fields: Any) -> dict[str, Any]:
        """Store a blob; its descriptor."""
        self.blob(data).write_bytes(data)
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **fields}

    def manifest(
        self, layers: Sequence[bytes], *, media_type: str = OCI_LAYER, packed: bool = False, **changes: Any
    ) -> dict[str, Any]:
        """Store an image of these uncompressed layers; the descriptor of its manifest."""
        manifest = {
            "schemaVersion": 2,
            "config": self.add("application/vnd.oci.image.config.v1+json", configuration(layers, **changes)),
            "layers": [self.add(media_type, gzip.compress(each) if packed else each) for each in layers],
        }
        return self.add(OCI_MANIFEST, json.dumps(manifest).encode())

    def tag(self, descriptor: dict[str, Any], name: str = "") -> None:
        """List a manifest or an index in the layout's own index."""
        annotations = {"annotations": {REF_NAME: name}} if name else {}
        self.manifests.append({**descriptor, **annotations})
        self.write_index()


def docker_archive(
    layers: Sequence[bytes],
    *,
    names: Sequence[str] = (),
    tags: Sequence[str] = ("web:1",),
    links: Mapping[str, str] | None = None,
    manifest: Any = None,
    config: bytes | None = None,
) -> bytes:
    """What ``docker save`` writes: layers at ``names``, symbolic ``links`` beside them."""
    names = names or [f"{number}/layer.tar" for number in range(len(layers))]
    config = configuration(layers) if config is None else config
    listed = [*names, *(links or {})]
    if manifest is None:
        manifest = [{"Config": "config.json", "RepoTags": list(tags), "Layers": listed}]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in zip(names, layers, strict=True):
            _add(tar, name, content)
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        _add(tar, "config.json", config)
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    return made.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
