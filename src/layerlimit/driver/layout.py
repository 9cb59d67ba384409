"""Where everything of one root directory lives, and which root is whose.

<root>/                      0700
  format                     {"version": 1, "union": "overlay"}; absent beside layers/: a root of the Go
                               driver
  lock                       byte-range locks: byte 0 the root, one byte per layer
  open                       who has the root open, and whether it has to be swept
  layers/<id>                the chain, nearest parent first; renamed into place and synced IS existence
  meta/<id>                  the limit; durable before layers/<id>; absent = a layer of the Go driver
  diff/<id>  work/<id>  mnt/<id>  mnt/<id>@ro
  img/<id>                   where the image is mounted; its upper/ is bound at diff/<id>, except while
                               nobody but an engine uses the layer, which was told of img/<id>/upper
  containers_quota/<id>.ext4 the image
  holds/<id>/                who uses the mount
  children/<id>/<child>      an index of layers/, made anew at each boot
  templates/  trash/  lost/
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from layerlimit.driver.locks import Locks
from layerlimit.errors import Corrupt, InvalidArgument, NotSupported, PermissionDenied, from_os_error
from layerlimit.linux import files

VERSION = 1
ADOPTING = "adopting"  # there while a root of the Go driver is converted, see adoption.py
REMOVING = "-removing"  # what the Go driver renames a tree to before it deletes it
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_DIRECTORIES = (
    *("mnt", "diff", "layers", "meta", "work", "img"),
    *("containers_quota", "holds", "children", "trash"),
)


def check_id(id: str) -> str:
    """``id`` if it may be a layer's; InvalidArgument (code ``id.invalid``) otherwise."""
    if not _ID.fullmatch(id) or id.endswith(REMOVING):
        raise InvalidArgument(
            f"{id!r:.150} cannot be the id of a layer",
            hint="use 1 to 128 of a-z A-Z 0-9 _ . - with a letter or digit first, not ending in -removing",
            code="id.invalid",
        )
    return id


def is_id(name: str) -> bool:
    """Whether a file of this name belongs to a layer of that id."""
    return bool(_ID.fullmatch(name)) and not name.endswith(REMOVING)


class Format(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file ``format``."""

    version: int
    union: str
    store: bool = False  # a store owns the layers: store.db says what they are called


@dataclass(frozen=True)
class Layout:
    """The paths of one root. ``go`` roots were made by the Go driver and keep its form."""

    root: Path
    go: bool

    @cached_property
    def lock(self) -> Path:
        return self.root / "lock"

    @cached_property
    def layers(self) -> Path:
        return self.root / "layers"

    @cached_property
    def meta(self) -> Path:
        return self.root / "meta"

    @cached_property
    def trash(self) -> Path:
        return self.root / "trash"

    @cached_property
    def holds(self) -> Path:
        return self.root / "holds"

    @cached_property
    def children(self) -> Path:
        return self.root / "children"

    @cached_property
    def openers(self) -> Path:
        return self.root / "open"

    @cached_property
    def diffs(self) -> Path:
        return self.root / "diff"

    @cached_property
    def works(self) -> Path:
        return self.root / "work"

    @cached_property
    def mounts(self) -> Path:
        return self.root / "mnt"

    @cached_property
    def images(self) -> Path:
        return self.root / "containers_quota"

    @cached_property
    def places(self) -> Path:
        return self.root / "img"

    def diff(self, id: str) -> Path:
        return files.below(self.diffs, id)

    def work(self, id: str) -> Path:
        return files.below(self.works, id)

    def place(self, id: str) -> Path:
        """Where the image of a layer is mounted."""
        return files.below(self.places, id)

    def shown(self, id: str) -> tuple[Path, ...]:
        """Where a mount of the layer is, if there is any; what is at ``diff/<id>`` is also at its place."""
        return self.mnt(id), self.mnt(f"{id}@ro"), self.place(id)

    def mnt(self, key: str) -> Path:
        """Where a layer, or its read-only view ``<id>@ro``, is mounted."""
        return files.below(self.mounts, key)

    def pieces(self, id: str) -> list[tuple[str, Path]]:
        """What a layer consists of apart from its chain, in the order of removal, each with a name."""
        return [
            ("diff", self.diff(id)),
            ("work", self.work(id)),
            ("image", self.images / f"{id}.ext4"),
            ("meta", self.meta / id),
            ("holds", self.holds / id),
            ("holds-ro", self.holds / f"{id}@ro"),
            ("img", self.place(id)),
            ("mnt", self.mnt(id)),
            ("mnt-ro", self.mnt(f"{id}@ro")),
        ]

    def unshut(self, id: str) -> None:
        """Let the bare directories of a layer be written and deleted again; they are shut for its mounts."""
        for path in (*self.shown(id), self.diff(id)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # which a symbolic link is, too
                files.set_immutable(path, False)

    def lose(self, path: Path) -> Path:
        """Move what nobody recognises out of the way, to ``lost/``; returns where it went."""
        lost = self.root / "lost"
        lost.mkdir(mode=0o700, exist_ok=True)
        target = lost / f"{path.parent.name}.{path.name}.{secrets.token_hex(4)}"
        os.rename(path, target)
        files.sync_directory(lost)
        return target


def read_format(root: Path) -> Format | None:
    """The root's format; None when the file is missing. Corrupt or NotSupported when it is not ours."""
    path = root / "format"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    try:
        found = msgspec.json.decode(raw, type=Format)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{path} is not readable: {error}", hint="restore it", code="root.format") from error
    if found.version > VERSION:
        raise NotSupported(
            f"{root} has format {found.version}, newer than the {VERSION} known here",
            hint="use a newer layerlimit",
            code="root.newer",
        )
    return found


def is_go_root(root: Path) -> bool:
    """Whether the Go driver left layers here: a ``layers/`` that holds any, without our ``format``."""
    if (root / "format").exists():
        return False
    try:
        with os.scandir(root / "layers") as entries:
            return any(entry.is_file(follow_symlinks=False) for entry in entries)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise from_os_error(error, f"read {root}") from error


def write_format(root: Path, union: str) -> None:
    """Make the root ours, durably; under its lock. What a crash leaves staged, the next call uses."""
    files.write_durably(root / "format", msgspec.json.encode(Format(version=VERSION, union=union)) + b"\n")


def end_adoption(root: Path) -> None:
    """Forget how far the conversion of a root has come, once it has its format."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(root / ADOPTING):
            (root / ADOPTING / name).unlink(missing_ok=True)
        (root / ADOPTING).rmdir()


def make_directories(root: Path) -> None:
    """Make the directories and the lock file that are missing; existing ones are kept.

    Without a journal, ext4 looks at every inode that was freed near a new one within the last minute or more:
    a layer made beside others that were just deleted took seconds longer, and a container's start a third. So
    each directory of the root, and each layer in ``diff``, gets a part of the disk of its own.
    """
    files.keep_apart(f"{root}/.")  # it may be a link
    for name in _DIRECTORIES:
        (root / name).mkdir(mode=0o700, exist_ok=True)
    files.keep_apart(root / "diff")
    os.close(os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def prepare(root: Path, union: str) -> Layout:
    """Make what is missing of a root for ``union``; safe when several processes do it at once."""
    go = is_go_root(root)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_directories(root)
        if not go and read_format(root) is None:
            with Locks(root / "lock").everything():
                if read_format(root) is None:  # nobody was faster
                    write_format(root, union)
        if not go:
            end_adoption(root)
    except PermissionError as error:
        raise PermissionDenied(f"cannot use {root}: {error.strerror}", hint="run as root") from error
    except OSError as error:
        raise from_os_error(error, f"prepare {root}") from error
    return Layout(root, go)
