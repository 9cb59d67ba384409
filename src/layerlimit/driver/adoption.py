"""Taking over a root that the Go driver left: once, layer by layer, so that overlay can show it.

    adopting/        made first: from now on nobody opens the root but this
    adopting/<id>    the layer is done

Steps, each durable before the next, and repeated from where it stopped after a crash:

1. per layer: AUFS markers become overlay's, in place; the content of a limited layer first moves from the
   root of its image below ``upper/`` (staged as ``.layerlimit-upper``, marked by an attribute);
2. ``meta/<id>`` is written, then ``adopting/<id>``;
3. ``format`` is written: the root is ours, and ``adopting/`` goes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerlimit.driver.conversion import METADATA, SHIFTED, convert, count_markers
from layerlimit.driver.layout import (
    ADOPTING,
    Layout,
    end_adoption,
    is_go_root,
    make_directories,
    write_format,
)
from layerlimit.driver.locks import Locks
from layerlimit.driver.records import Layer, Records
from layerlimit.errors import Busy, Error, InvalidArgument, from_os_error
from layerlimit.limit import Limit, Record
from layerlimit.limit.ext4 import Superblock, read_superblock, repair
from layerlimit.limit.template import detached
from layerlimit.linux import files, loop, xattr
from layerlimit.linux.mount import FsContext
from layerlimit.linux.statx import is_mount_point

log = logging.getLogger("layerlimit")

_STAGE = ".layerlimit-upper"
_MARK = b"trusted.layerlimit.upper"
_SECTOR = 512  # what an image with 1 KiB blocks can be attached with, and every other


@dataclass(frozen=True, slots=True)
class Adoption:
    """What :func:`adopt` did, or with ``dry_run`` would do.

    ``layers`` names every layer, ``limited`` those with an image, ``markers`` counts converted whiteouts
    and opaque marks, and ``fstab`` holds the lines of /etc/fstab that a person should now delete.
    ``strays`` are directories with files that were written past a limit while its image was not mounted;
    they are kept in ``lost/``.
    """

    layers: tuple[str, ...]
    limited: tuple[str, ...]
    markers: int
    fstab: tuple[str, ...]
    strays: tuple[str, ...] = ()


def adopt(
    root: str | os.PathLike[str],
    union: str = "overlay",
    dry_run: bool = False,
    *,
    owner_shift: int = 0,
    fstab: Path = Path("/etc/fstab"),
) -> Adoption:
    """Convert a root of the Go driver in place; run again after an interruption, it goes on.

    ``owner_shift`` (the Go driver's was 100000) is taken from the 65536 owners from it on; setuid bits and
    capabilities stay. Nothing may be mounted below the root, and no image attached (Busy). /etc/fstab is
    read, never written. ``dry_run`` writes nothing. InvalidArgument when ``root`` is not a root of the Go
    driver; Corrupt, naming the layer, for an image that cannot be repaired: it and the rest stay as they are.
    """
    where = Path(root).absolute()
    if union != "overlay":
        raise InvalidArgument(f"a root is not converted for {union}", hint="AUFS opens it as it is")
    if owner_shift and not SHIFTED <= owner_shift < (1 << 32) - SHIFTED:
        raise InvalidArgument(
            f"owners cannot be shifted by {owner_shift}",
            hint=f"the Go driver's shift was 100000, at least {SHIFTED}",
        )
    if not is_go_root(where):
        raise InvalidArgument(f"{where} holds no layers of the Go driver", code="root.not_go")
    try:
        run = _Run(where, owner_shift)
        lines = _fstab_lines(fstab, where)
        if dry_run:
            markers = sum(map(run.count, run.layers))
        else:
            make_directories(where)
            with Locks(run.layout.lock).everything():
                (where / ADOPTING).mkdir(mode=0o700, exist_ok=True)
                files.sync_directory(where)
                markers = sum(map(run.convert, run.layers))
                write_format(where, union)
                end_adoption(where)
    except OSError as error:
        raise from_os_error(error, f"convert {where}") from error
    limited = tuple(layer.id for layer in run.layers if layer.record is not None)
    return Adoption(tuple(layer.id for layer in run.layers), limited, markers, lines, tuple(run.strays))


def _fstab_lines(fstab: Path, root: Path) -> tuple[str, ...]:
    try:
        lines = fstab.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(line for line in lines if line.split()[:1] and line.split()[0].startswith(f"{root}/"))


class _Run:
    """One pass over the layers of a root that nobody has mounted."""

    def __init__(self, root: Path, shift: int) -> None:
        self.layout = Layout(root, go=True)
        self._records = Records(self.layout)
        self._shift = shift
        self.layers = [self._records.load(id) for id in self._records.ids()]
        self.strays: list[str] = []
        for layer in self.layers:
            self._refuse_mounted(layer)

    def _refuse_mounted(self, layer: Layer) -> None:
        for path in (*self.layout.shown(layer.id), self.layout.diff(layer.id)):
            if is_mount_point(path):
                raise Busy(f"{path} is mounted", hint="stop what uses it and unmount it", code="root.mounted")

    def count(self, layer: Layer) -> int:
        """How many markers there are to convert; changes nothing."""
        self._set_strays_aside(layer, dry_run=True)
        if layer.record is None:
            return count_markers(self.layout.diff(layer.id))
        with self._image(layer) as (fd, image), _peek(fd, image) as mount:
            return count_markers(_below(mount) if layer.record.rooted else _below(mount) / "upper")

    def convert(self, layer: Layer) -> int:
        """Convert one layer; returns how many markers it had. One that is done is left alone."""
        done = self.layout.root / ADOPTING / layer.id
        if done.exists():
            return 0
        try:
            markers = self._convert(layer)
        except RecursionError as error:
            raise Error(
                f"layer {layer.id} has directories nested too deep to be converted",
                hint="remove them from its directory, or remove the layer",
            ) from error
        os.close(os.open(done, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        files.sync_directory(done.parent)
        return markers

    def _convert(self, layer: Layer) -> int:
        branch = self.layout.diff(layer.id)
        record = layer.record
        if record is None:
            markers = convert(branch, shift=self._shift) if branch.is_dir() else 0
            files.sync_file_system(self.layout.root)
            self._records.write_record(layer.id, None)
            return markers
        self._set_strays_aside(layer, dry_run=False)
        with self._image(layer) as (fd, image):
            if not read_superblock(fd, image).clean:
                repair(image, fd)
            block = read_superblock(fd, image)
            with detached(image, record.limit, block_size=_SECTOR) as mount:
                if record.rooted:
                    markers = _move_content(mount, self._shift)
                else:  # made by this driver, on AUFS
                    markers = convert(_below(mount) / "upper", shift=self._shift)
                files.sync_file_system(_below(mount))
        if record.rooted:
            self._records.write_record(layer.id, _record_of(image, block))
        return markers

    def _set_strays_aside(self, layer: Layer, *, dry_run: bool) -> None:
        """The Go driver served the bare directory when the image was not mounted; that is not this layer."""
        branch = self.layout.diff(layer.id)
        if layer.record is None or not branch.is_dir() or not os.listdir(branch):
            return
        if dry_run:
            self.strays.append(str(branch))
            return
        files.set_immutable(branch, False)
        kept = self.layout.lose(branch)
        self.strays.append(str(kept))
        log.warning("files of layer %s were written past its limit; they are kept in %s", layer.id, kept)

    @contextlib.contextmanager
    def _image(self, layer: Layer) -> Iterator[tuple[int, Path]]:
        """The image of a limited layer, open and locked."""
        image = self.layout.root / "containers_quota" / f"{layer.id}.ext4"
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            live = loop.find(os.fstat(fd))  # mount(8) takes no flock
            if live is not None:
                live.close()
            if live is not None or not files.try_flock(fd):
                raise Busy(f"{image} is attached", hint="detach it first", code="image.locked")
            yield fd, image
        except Error as error:
            raise type(error)(
                f"layer {layer.id}: {error.message}", hint=error.hint, code=error.code
            ) from error
        finally:
            os.close(fd)


def _record_of(image: Path, block: Superblock) -> Record:
    return Record(limit=Limit(os.stat(image).st_size), limiter="image", uuid=block.uuid)


def _below(mount: int) -> Path:
    return Path(f"/proc/self/fd/{mount}")


@contextlib.contextmanager
def _peek(fd: int, image: Path) -> Iterator[int]:
    """The root of an image, read only, without even replaying its journal."""
    with loop.attach(fd, image, block_size=_SECTOR, read_only=True) as device, FsContext("ext4") as context:
        context.set_string("source", device.path)
        context.set_flag("ro")
        context.set_flag("noload")
        context.create()
        with context.mount() as mount:
            yield mount.fd


def _move_content(mount: int, shift: int) -> int:
    """Move what is at the root of an image into its upper/, converted; ``mount`` is the detached root."""
    root = _below(mount)
    upper = root / "upper"
    markers = 0
    if not (upper.is_dir() and xattr.find_xattr(os.fsencode(upper), _MARK)):
        stage = root / _STAGE
        status = os.stat(root)
        stage.mkdir(mode=0o755, exist_ok=True)
        xattr.set_xattr(os.fsencode(stage), _MARK, b"1")
        for name in os.listdir(root):
            if name.startswith(METADATA) and name != ".wh..wh..opq":
                continue
            if name not in (_STAGE, "lost+found"):
                os.rename(root / name, stage / name)
        os.chown(stage, status.st_uid, status.st_gid)
        os.chmod(stage, stat.S_IMODE(status.st_mode))
        os.utime(stage, ns=(status.st_atime_ns, status.st_mtime_ns))
        markers = convert(stage, shift=shift)
        os.rename(stage, upper)
    (root / "work").mkdir(mode=0o711, exist_ok=True)
    return markers
