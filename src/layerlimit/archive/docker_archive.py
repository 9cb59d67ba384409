"""The tar that ``docker save`` and ``podman save`` write: ``manifest.json``, a configuration, layer tars.

Old archives keep layers as ``<id>/layer.tar`` (some as symbolic links to another one), new ones as
``blobs/sha256/<digits>``. Source: moby image/tarexport, containers/image docker/internal/tarfile.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

import msgspec

from layerlimit.archive import tarformat as tar
from layerlimit.archive.image import MAX_DOCUMENT, CheckedStream, ImageLayer, decode, diff_ids, invalid
from layerlimit.archive.inflate import MAGIC_BYTES, Compression, Inflater, detect
from layerlimit.archive.limits import MIB, Limits
from layerlimit.archive.reader import Reader
from layerlimit.errors import NotFound, from_os_error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LIMITS: Final = Limits(entries=100_000)
_LINKS: Final = 8  # links that lead to links


class _Entry(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    start: int
    size: int


class DockerArchive:
    """One image of the docker archive ``file``: the one tagged ``name``, or the only one.

    The archive may be compressed, or a pipe; it is then first unpacked into an unnamed temporary file.
    Layers are proven by the diff IDs of the configuration. InvalidArgument (codes ``image.invalid``,
    ``image.tag``, ``archive.*``) for what is wrong with it. Implements ``Image``.
    """

    def __init__(self, file: Path | BinaryIO, name: str = "") -> None:
        with ExitStack() as undo:
            try:
                self._file = undo.enter_context(_opened(file))
            except OSError as error:
                raise from_os_error(error, f"open the docker archive {file}") from error
            self._fd = self._file.fileno()
            self._members: dict[str, _Member] = {}
            self._links: dict[str, str] = {}
            self._index()
            self.layers, self._names = self._image(name)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def open(self, layer: ImageLayer) -> io.RawIOBase:
        """The tar of a layer, compressed or not, as it is stored."""
        name = self._names[self.layers.index(layer)]
        member = self._find(name)
        return CheckedStream(_Window(self._fd, member), f"layer {name}", size=member.size, digest="")

    def _index(self) -> None:
        """Note where each member lies, in one pass over the archive."""
        position = 0

        def chunk() -> memoryview:
            nonlocal position
            piece = os.pread(self._fd, MIB, position)
            position += len(piece)
            return memoryview(piece)

        reader = Reader(chunk, limits=_LIMITS)
        try:
            while reader.advance():
                name = _clean(os.fsdecode(reader.name))
                self._members.pop(name, None)
                self._links.pop(name, None)
                if reader.type == tar.REGULAR and reader.regions is None:
                    self._members[name] = _Member(reader.offset, reader.size)
                elif reader.type == tar.SYMLINK:
                    target = os.fsdecode(reader.link_name)
                    self._links[name] = _clean(posixpath.join(posixpath.dirname(name), target))
                elif reader.type == tar.HARD_LINK:
                    self._links[name] = _clean(os.fsdecode(reader.link_name))
        except OSError as error:
            raise from_os_error(error, "read the docker archive") from error

    def _image(self, name: str) -> tuple[tuple[ImageLayer, ...], list[str]]:
        entries = decode(self._document("manifest.json"), list[_Entry], "manifest.json")
        tags = sorted({tag for entry in entries for tag in entry.repo_tags or ()})
        choices = f"choose one with docker-archive:FILE:NAME:TAG; there are: {', '.join(tags[:20])}"
        found = [entry for entry in entries if not name or name in (entry.repo_tags or ())]
        if not found:
            raise NotFound(f"the docker archive has no image {name!r}", hint=choices, code="image.tag")
        if len(found) > 1:
            raise invalid(f"the docker archive holds {len(found)} images", hint=choices, code="image.tag")
        names = found[0].layers
        ids = diff_ids(self._document(found[0].config), "the configuration", len(names))
        layers = tuple(
            ImageLayer("", diff_id, self._find(layer).size) for layer, diff_id in zip(names, ids, strict=True)
        )
        return layers, names

    def _document(self, name: str) -> bytes:
        member = self._find(name)
        if member.size > MAX_DOCUMENT:
            raise invalid(f"{name} is larger than {MAX_DOCUMENT} bytes")
        raw = os.pread(self._fd, member.size, member.start)
        if len(raw) != member.size:
            raise invalid(f"the docker archive ends in {name}", code="archive.truncated")
        return raw

    def _find(self, name: str) -> _Member:
        wanted = _clean(name)
        for _ in range(_LINKS):
            if wanted in self._members:
                return self._members[wanted]
            if wanted not in self._links:
                break
            wanted = self._links[wanted]
        hint = "it is no docker archive" if name == "manifest.json" else "save the image again"
        raise invalid(f"the archive has no file {name!r:.150}", hint=hint)


def _clean(name: str) -> str:
    """A member's name as manifests write it. It is only ever looked up, so it need not be contained."""
    return posixpath.normpath("/" + name).lstrip("/")


def _opened(file: Path | BinaryIO) -> io.BufferedReader | BinaryIO:
    """The archive as a plain tar in a regular file, its own or an unnamed temporary one."""
    if not isinstance(file, Path):
        # Its file may be a pipe, or none at all, and its position is the caller's.
        head = _head(file)
        return _spooled(file, head, detect(head))
    with ExitStack() as undo:
        source = undo.enter_context(open(file, "rb"))
        regular = stat.S_ISREG(os.fstat(source.fileno()).st_mode)
        head = os.pread(source.fileno(), MAGIC_BYTES, 0) if regular else _head(source)
        if regular and detect(head) is Compression.NONE:
            undo.pop_all()
            return source
        return _spooled(source, b"" if regular else head, detect(head))


def _head(source: BinaryIO) -> bytes:
    """The first bytes of a stream, which may give fewer at a time than it is asked for."""
    head = b""
    while len(head) < MAGIC_BYTES and (piece := source.read(MAGIC_BYTES - len(head))):
        head += piece
    return head


def _spooled(source: BinaryIO, head: bytes, compression: Compression) -> BinaryIO:
    first = [head] if head else []

    def chunk() -> memoryview:
        return memoryview(first.pop() if first else source.read(MIB))

    with ExitStack() as undo:
        plain: BinaryIO = undo.enter_context(tempfile.TemporaryFile(prefix="layerlimit-"))
        if compression is Compression.NONE:
            while piece := chunk():
                plain.write(piece)
        else:
            inflater = Inflater(compression, chunk, limits=_LIMITS)
            buffer = memoryview(bytearray(MIB))
            while filled := inflater.fill(buffer):
                plain.write(buffer[:filled])
        plain.flush()
        undo.pop_all()
        return plain


class _Window(io.RawIOBase):
    """The bytes of one member. The descriptor belongs to the archive and stays open."""

    def __init__(self, fd: int, member: _Member) -> None:
        self._fd = fd
        self._position = member.start
        self._end = member.start + member.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")[: self._end - self._position]
        count = os.preadv(self._fd, [view], self._position) if len(view) else 0
        self._position += count
        return count
