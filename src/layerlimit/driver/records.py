"""Which layers there are, how they are chained and how they are limited: ``layers/`` and ``meta/``."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from layerlimit.driver.children import Children
from layerlimit.driver.layout import Layout, is_id
from layerlimit.errors import Corrupt, Error, InvalidArgument, NotFound, from_os_error
from layerlimit.limit import Limit, Record
from layerlimit.linux import files


class Meta(msgspec.Struct, frozen=True):
    """The file ``meta/<id>``; ``record`` is null for a layer without a limit."""

    record: Record | None


@dataclass(frozen=True, slots=True)
class Layer:
    """What is written down about one layer; ``chain`` is its ancestors, nearest first."""

    id: str
    chain: tuple[str, ...]
    record: Record | None

    @property
    def parent(self) -> str:
        """The id of the parent, ``""`` for a base."""
        return self.chain[0] if self.chain else ""


class Records:
    """Reads and writes the two directories. Callers hold the locks of the layers they change."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._index = Children(layout.children)

    def exists(self, id: str) -> bool:
        """Whether the layer is there, which its chain file alone decides."""
        if not is_id(id):
            return False
        try:
            return stat.S_ISREG(os.lstat(f"{self._layout.root}/layers/{id}").st_mode)
        except FileNotFoundError:
            return False

    def ids(self) -> list[str]:
        """All layers, sorted."""
        try:
            with os.scandir(self._layout.layers) as entries:
                return sorted(e.name for e in entries if is_id(e.name) and e.is_file(follow_symlinks=False))
        except OSError as error:
            raise from_os_error(error, "list the layers") from error

    def deepest_first(self) -> list[str]:
        """All layers whose chain can be read, descendants before what they stand on."""
        depth = {}
        for id in self.ids():
            with contextlib.suppress(Error):
                depth[id] = len(self.chain(id))
        return sorted(depth, key=lambda id: -depth[id])

    def children(self, id: str) -> list[str]:
        """The layers whose parent is ``id``, sorted."""
        if not self._layout.go:
            return [child for child in self._index.of(id) if self.exists(child)]
        return self._search_children(id)

    def _search_children(self, id: str) -> list[str]:
        """Reads the first line of every chain: the Go driver keeps no index."""
        needle = id.encode()
        found = []
        for other in self.ids():
            try:
                fd = os.open(self._layout.layers / other, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if os.pread(fd, 130, 0).split(b"\n", 1)[0] == needle:
                    found.append(other)
            finally:
                os.close(fd)
        return found

    def load(self, id: str) -> Layer:
        """Everything about ``id``; NotFound, or Corrupt when the files contradict each other."""
        return Layer(id, self.chain(id), self.record(id))

    def load_damaged(self, id: str) -> Layer:
        """:meth:`load` for taking a layer down: one whose record is damaged can still be removed."""
        chain = self.chain(id)
        try:
            return Layer(id, chain, self.record(id))
        except NotFound:
            raise
        except Error:
            return Layer(id, chain, None)

    def chain(self, id: str) -> tuple[str, ...]:
        """The ancestors of ``id``, nearest first; NotFound when it is no layer."""
        try:
            lines = files.read_whole(f"{self._layout.root}/layers/{id}").decode("ascii").split("\n")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFound(
                f"there is no layer {id}",
                hint="see which there are with 'layerlimit ls'",
                code="layer.not_found",
            ) from error
        except UnicodeDecodeError as error:
            raise Corrupt(f"the chain of layer {id} is damaged", code="layer.chain") from error
        except OSError as error:
            raise from_os_error(error, f"read the chain of layer {id}") from error
        chain = tuple(line.strip() for line in lines if line.strip())
        if not all(map(is_id, chain)) or id in chain or len(set(chain)) != len(chain):
            raise Corrupt(
                f"the chain of layer {id} is damaged",
                hint=f"see {self._layout.layers / id}",
                code="layer.chain",
            )
        return chain

    def record(self, id: str) -> Record | None:
        """How ``id`` is limited, None when it is not. A record that is missing or false is Corrupt."""
        image = f"{self._layout.root}/containers_quota/{id}.ext4"
        try:
            raw = files.read_whole(f"{self._layout.root}/meta/{id}")
        except FileNotFoundError as error:
            if self._layout.go:
                return _record_of_go(image)
            raise Corrupt(
                f"what limits layer {id} is not recorded: {self._layout.meta / id} is missing",
                hint="restore the file, or remove the layer; without it nothing proves its limit",
                code="layer.no_record",
            ) from error
        except OSError as error:
            raise from_os_error(error, f"read the record of layer {id}") from error
        try:
            record = msgspec.json.decode(raw, type=Meta).record
        except (msgspec.MsgspecError, ValueError, InvalidArgument) as error:
            raise Corrupt(f"the record of layer {id} is damaged: {error}", code="layer.record") from error
        if record is None and os.path.lexists(image):
            raise Corrupt(
                f"layer {id} has an image, but its record says it has no limit",
                hint=f"see {self._layout.meta / id}; the layer is not used like this",
                code="layer.record",
            )
        return record

    def write_record(self, id: str, record: Record | None) -> None:
        """Write ``meta/<id>`` durably."""
        files.write_durably(self._layout.meta / id, _encode(record), staging=self._layout.trash)

    def announce(self, id: str, record: Record | None) -> Callable[[], None]:
        """Write ``meta/<id>`` of a layer to be; what is returned makes it durable, before the chain is.

        A crash before that may cut it off: of a layer without a chain, its name alone counts.
        """
        path = f"{self._layout.root}/meta/{id}"
        _write_new(path, _encode(record))

        def settle() -> None:
            files.sync_file(path)
            files.sync_directory(self._layout.meta)

        return settle

    def stage_chain(self, id: str, chain: tuple[str, ...]) -> None:
        """Write the chain of a layer to be where a sweep finds it."""
        self.unstage_chain(id)
        _write_new(self._staged(id), "".join(f"{line}\n" for line in chain).encode())

    def unstage_chain(self, id: str) -> None:
        """Forget a chain that was staged."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._staged(id))

    def write_chain(self, id: str, chain: tuple[str, ...]) -> None:
        """Let the chain that was staged be ``layers/<id>``, durably: from here on the layer exists."""
        if chain and not self._layout.go:
            self._index.add(chain[0], id)
        staged = self._staged(id)
        files.sync_file(staged)
        os.rename(staged, f"{self._layout.root}/layers/{id}")
        files.sync_directory(self._layout.layers)

    def _staged(self, id: str) -> str:
        return f"{self._layout.root}/trash/.{id}.new"

    def forget_child(self, parent: str, id: str) -> None:
        """The layer ``id`` is gone from above ``parent`` (``""``: it was a base)."""
        if parent and not self._layout.go:
            self._index.drop(parent, id)

    def index(self, is_gone: Callable[[str], bool]) -> None:
        """Make the index of children anew, without those that exist no longer, which ``is_gone`` confirms."""
        parents = []
        for id in self.ids():
            with contextlib.suppress(Error):  # a damaged chain is found by whoever uses it
                parents += [(id, parent) for parent in self.chain(id)[:1]]
        self._index.rebuild(parents, lambda id: not self.exists(id) and is_gone(id))


def _encode(record: Record | None) -> bytes:
    return msgspec.json.format(msgspec.json.encode(Meta(record=record)), indent=1) + b"\n"


def _write_new(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        files.write_whole(fd, data)
        files.start_writing(fd)
    finally:
        os.close(fd)


def _record_of_go(image: str) -> Record | None:
    """An image beside a layer without a record was made by the Go driver: the layer is at its root."""
    try:
        size = os.lstat(image).st_size
    except FileNotFoundError:
        return None
    return Record(limit=Limit(max(size, 1)), limiter="image", rooted=True)
