"""Images as engines store them: an ordered list of layer tars that are proven while they are read.

:mod:`oci` and :mod:`docker_archive` each read one form; what they share is here. All of it is hostile
input: documents are bounded and typed, digests are checked, and a name never leads out of the image.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Protocol, Self, TypeVar

import msgspec

from layerlimit.archive.limits import MIB
from layerlimit.errors import InvalidArgument, NotSupported

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Bytes of one manifest, index or configuration; containerd and containers/image stop at 4 MiB, too.
MAX_DOCUMENT = 4 * MIB
#: Layers of one image; overlay joins at most 500, and other engines stop at 127.
MAX_LAYERS = 500

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")

Size = Annotated[int, msgspec.Meta(ge=0)]
Document = TypeVar("Document")


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """One layer of an image: ``size`` bytes as stored, ``diff_id`` the digest of the uncompressed tar.

    ``digest`` is the digest of the stored bytes, "" where the form has none.
    """

    digest: str
    diff_id: str
    size: int


class Image(Protocol):
    """An opened image; a context manager. ``layers`` come in the order in which they are applied."""

    @property
    def layers(self) -> tuple[ImageLayer, ...]:
        """The layers, the lowest first."""

    def open(self, layer: ImageLayer) -> io.RawIOBase:
        """The stored bytes of a layer; the read that comes to the end raises when they are not right."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class RootFs(msgspec.Struct):
    """``rootfs`` of an image configuration (OCI image spec, config.md)."""

    type: str
    diff_ids: list[str]


class Configuration(msgspec.Struct):
    """What is needed of an image configuration, which Docker and OCI share."""

    rootfs: RootFs
    os: str = "linux"


def invalid(message: str, *, hint: str = "", code: str = "image.invalid") -> InvalidArgument:
    """The error for an image that is not what it must be."""
    return InvalidArgument(message, hint=hint, code=code)


def split_digest(digest: str) -> tuple[str, str]:
    """Algorithm and hexadecimal digits of a digest; InvalidArgument for anything else, such as a path."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise invalid(f"{digest!r:.150} is not a sha256 or sha512 digest")
    return (match[1], match[2]) if match[1] else (match[3], match[4])


def decode(raw: bytes, kind: type[Document], what: str) -> Document:
    """``raw`` as a document of the type ``kind``; InvalidArgument when it is none."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"{what} is not valid: {error}") from error


def diff_ids(raw: bytes, what: str, count: int) -> list[str]:
    """The diff IDs that the configuration ``raw`` gives for ``count`` layers."""
    found = decode(raw, Configuration, what)
    if found.os not in ("", "linux"):
        raise NotSupported(f"this is an image for {found.os!r:.50}, not for Linux", code="image.platform")
    if len(found.rootfs.diff_ids) != count:
        raise invalid(f"{what} lists {len(found.rootfs.diff_ids)} diff IDs for {count} layers")
    if count > MAX_LAYERS:
        raise invalid(f"the image has {count} layers; at most {MAX_LAYERS} are taken")
    for diff_id in found.rootfs.diff_ids:
        if split_digest(diff_id)[0] != "sha256":
            raise NotSupported(
                f"diff IDs other than sha256 are not supported: {diff_id}", code="image.digest"
            )
    return found.rootfs.diff_ids


class CheckedStream(io.RawIOBase):
    """Exactly ``size`` bytes of ``source``, which it owns; at the end they must have the ``digest``.

    A short, a long or a changed blob makes the read at its end raise InvalidArgument (code
    ``image.digest``), so whoever has read to the end has read the right bytes. ``digest`` may be "".
    """

    def __init__(self, source: io.RawIOBase, what: str, *, size: int, digest: str) -> None:
        self._source = source
        self._what = what
        self._left = size
        self._digest = digest
        self._hash = hashlib.new(split_digest(digest)[0]) if digest else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")[: self._left]
        count = self._source.readinto(view) if len(view) else 0
        if not count:
            if self._left:
                raise invalid(f"{self._what} is {self._left} bytes short", code="image.digest")
            self._check()
            return 0
        self._left -= count
        if self._hash is not None:
            self._hash.update(view[:count])
        return count

    def _check(self) -> None:
        if self._hash is None:
            return
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != self._digest:
            raise invalid(
                f"{self._what} is damaged: its digest is {found}",
                hint="fetch the image again",
                code="image.digest",
            )

    def close(self) -> None:
        self._source.close()
        super().close()
