"""An OCI image layout: a directory with ``index.json`` and ``blobs/<algorithm>/<digits>``.

Source: OCI image spec v1.1, image-layout.md, image-index.md, manifest.md, descriptor.md; Docker's media
types are those of its schema 2, which registries and tools store in the same layout.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from layerlimit.archive.image import (
    MAX_DOCUMENT,
    CheckedStream,
    ImageLayer,
    Size,
    decode,
    diff_ids,
    invalid,
    split_digest,
)
from layerlimit.errors import NotFound, NotSupported, from_os_error
from layerlimit.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2

_INDEXES: Final = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFESTS: Final = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
# Compression is told by the bytes, not by the type; what else a type says must be a plain layer tar.
_LAYERS: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME: Final = "io.containerd.image.name"
_DEPTH: Final = 4  # indexes inside indexes
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i686": "386",
    "armv7l": "arm",
    "armv6l": "arm",
    "loongarch64": "loong64",
}


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: Size
    media_type: str = ""
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def tags(self) -> set[str]:
        """The names by which a user may ask for it."""
        found = self.annotations or {}
        return {found[key] for key in (_REF_NAME, _CONTAINERD_NAME) if key in found}


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _Layout(msgspec.Struct, rename="camel"):
    image_layout_version: str


class OciImage:
    """One image of an OCI layout at ``directory``: the one called ``tag``, or the only one.

    Of several platforms, the one of this machine is taken. InvalidArgument (codes ``image.invalid``,
    ``image.digest``, ``image.tag``) for what is wrong with it, NotFound when there is no layout,
    NotSupported for media types that are no layer tars. Implements ``Image``.
    """

    def __init__(self, directory: Path, tag: str = "") -> None:
        with ExitStack() as undo:
            try:
                self._root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise from_os_error(error, f"open the OCI layout {directory}") from error
            undo.callback(os.close, self._root)
            self._directory = directory
            self._check_version()
            raw = self._read(b"index.json", "index.json", MAX_DOCUMENT)
            manifest = self._manifest(decode(raw, _Index, "index.json").manifests, tag)
            self.layers = self._layers(manifest)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)

    def open(self, layer: ImageLayer) -> io.RawIOBase:
        """The blob of a layer; the read that comes to the end raises when its digest is not right."""
        return CheckedStream(
            self._file(_blob_path(layer.digest), f"layer {layer.digest}"),
            f"layer {layer.digest}",
            size=layer.size,
            digest=layer.digest,
        )

    # -- what is in it -----------------------------------------------------------------------------

    def _check_version(self) -> None:
        try:
            raw = self._read(b"oci-layout", "oci-layout", MAX_DOCUMENT)
        except NotFound as error:
            raise NotFound(
                f"{self._directory} is no OCI image layout: it has no file oci-layout",
                hint="give the directory that a tool wrote as oci:DIR",
                code="image.not_found",
            ) from error
        version = decode(raw, _Layout, "oci-layout").image_layout_version
        if version != "1.0.0":
            raise NotSupported(f"OCI layouts of version {version!r:.50} are not known", code="image.version")

    def _manifest(self, entries: list[_Descriptor], tag: str) -> _Descriptor:
        named = [entry for entry in entries if tag in entry.tags] if tag else entries
        if tag and not named:
            raise NotFound(
                f"{self._directory} has no image {tag!r}", hint=_choices(entries), code="image.tag"
            )
        found = {entry.digest: entry for each in named for entry in self._resolve(each, _DEPTH)}
        if not found:
            wanted = f"for linux/{_architecture()}"
            raise NotSupported(f"{self._directory} has no image {wanted}", code="image.platform")
        if len(found) > 1:
            raise invalid(
                f"{self._directory} holds {len(found)} images", hint=_choices(entries), code="image.tag"
            )
        return next(iter(found.values()))

    def _resolve(self, entry: _Descriptor, depth: int) -> Iterator[_Descriptor]:
        """The image manifests for this machine that a descriptor stands for."""
        if entry.media_type in _INDEXES:
            if depth == 0:
                raise invalid(f"image indexes are nested more than {_DEPTH} deep")
            index = decode(self._document(entry, "index"), _Index, f"index {entry.digest}")
            for inner in index.manifests:
                yield from self._resolve(inner, depth - 1)
        elif entry.media_type in _MANIFESTS:
            wanted = entry.platform
            if wanted is None or (wanted.os, wanted.architecture) == ("linux", _architecture()):
                yield entry

    def _layers(self, entry: _Descriptor) -> tuple[ImageLayer, ...]:
        manifest = decode(self._document(entry, "manifest"), _Manifest, f"manifest {entry.digest}")
        for layer in manifest.layers:
            split_digest(layer.digest)
            if layer.media_type not in _LAYERS:
                raise NotSupported(
                    f"layer {layer.digest} has the type {layer.media_type!r:.150}",
                    hint="only layers that are tars, plain or compressed, can be imported",
                    code="image.media_type",
                )
        raw = self._document(manifest.config, "configuration")
        ids = diff_ids(raw, f"configuration {manifest.config.digest}", len(manifest.layers))
        return tuple(
            ImageLayer(layer.digest, diff_id, layer.size)
            for layer, diff_id in zip(manifest.layers, ids, strict=True)
        )

    # -- files -------------------------------------------------------------------------------------

    def _document(self, entry: _Descriptor, kind: str) -> bytes:
        what = f"{kind} {entry.digest}"
        raw = self._read(_blob_path(entry.digest), what, MAX_DOCUMENT)
        algorithm, digits = split_digest(entry.digest)
        if len(raw) != entry.size or hashlib.new(algorithm, raw).hexdigest() != digits:
            raise invalid(f"{what} is damaged", hint="fetch the image again", code="image.digest")
        return raw

    def _read(self, path: bytes, what: str, most: int) -> bytes:
        with self._file(path, what) as file:
            raw = b""
            while chunk := file.read(most + 1 - len(raw)):
                raw += chunk
        if len(raw) > most:
            raise invalid(f"{what} is larger than {most} bytes")
        return raw

    def _file(self, path: bytes, what: str) -> io.FileIO:
        """A regular file of the layout; a link that leads out of it is refused by the kernel."""
        try:
            resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
            fd = openat2(self._root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=resolve)
        except OSError as error:
            raise from_os_error(error, f"open {what} of {self._directory}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise invalid(f"{what} of {self._directory} is not a regular file")
        return io.FileIO(fd, "rb")


def _blob_path(digest: str) -> bytes:
    algorithm, digits = split_digest(digest)
    return f"blobs/{algorithm}/{digits}".encode()


def _architecture() -> str:
    """This machine's architecture as Go and OCI call it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def _choices(entries: list[_Descriptor]) -> str:
    tags = sorted({tag for entry in entries for tag in entry.tags})
    if not tags:
        return "its images have no names"
    return f"choose one with oci:DIR:TAG; there are: {', '.join(tags[:20])}"
