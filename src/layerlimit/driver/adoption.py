"""Taking over a root that the Go driver left: once, layer by layer, so that overlay can show it.

Steps, each durable before the next, and repeated from where it stopped after a crash:

1. per layer: AUFS markers become overlay's, in place; the content of a limited layer first moves from the
   root of its image below ``upper/`` (staged as ``.layerlimit-upper``, marked by an attribute);
2. ``meta/<id>`` is written: the layer is done;
3. ``format`` is written: the root is ours. Until then no driver opens it with overlay.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from layerlimit.driver.conversion import METADATA, convert, count_markers
from layerlimit.driver.layout import VERSION, Format, Layout, is_go_root, make_directories
from layerlimit.driver.locks import Locks
from layerlimit.driver.records import Layer, Records
from layerlimit.errors import Busy, Error, InvalidArgument, from_os_error
from layerlimit.limit import Limit, Record
from layerlimit.limit.ext4 import read_superblock, repair
from layerlimit.limit.template import detached
from layerlimit.linux import files, xattr
from layerlimit.linux.statx import is_mount_point

_STAGE = ".layerlimit-upper"
_MARK = b"trusted.layerlimit.upper"


@dataclass(frozen=True, slots=True)
class Adoption:
    """What :func:`adopt` did, or with ``dry_run`` would do.

    ``layers`` names every layer, ``limited`` those with an image, ``markers`` counts converted whiteouts
    and opaque marks, and ``fstab`` holds the lines of /etc/fstab that a person should now delete.
    """

    layers: tuple[str, ...]
    limited: tuple[str, ...]
    markers: int
    fstab: tuple[str, ...]


def adopt(
    root: str | os.PathLike[str],
    union: str = "overlay",
    dry_run: bool = False,
    *,
    owner_shift: int = 0,
    fstab: Path = Path("/etc/fstab"),
) -> Adoption:
    """Convert a root of the Go driver in place; run again after an interruption, it goes on.

    ``owner_shift`` (the Go driver's was 100000) is taken from every owner at or above it. Nothing may be
    mounted below the root (Busy). /etc/fstab is read, never written. InvalidArgument when ``root`` is not
    a root of the Go driver.
    """
    where = Path(root).absolute()
    if union != "overlay":
        raise InvalidArgument(f"a root is not converted for {union}", hint="AUFS opens it as it is")
    if not is_go_root(where):
        raise InvalidArgument(f"{where} holds no layers of the Go driver", code="root.not_go")
    try:
        lines = _fstab_lines(fstab, where)
        if not dry_run:
            make_directories(where)
        layout = Layout(where, go=True)
        records = Records(layout)
        layers = [records.load(id) for id in records.ids()]
        _refuse_mounted(layout, layers)
        if dry_run:
            markers = sum(count_markers(layout.diff(layer.id)) for layer in layers if layer.record is None)
        else:
            with Locks(layout.lock).everything():
                markers = sum(_adopt_layer(layout, records, layer, owner_shift) for layer in layers)
                raw = msgspec.json.encode(Format(version=VERSION, union=union)) + b"\n"
                files.write_durably(where / "format", raw)
    except OSError as error:
        raise from_os_error(error, f"convert {where}") from error
    limited = tuple(layer.id for layer in layers if layer.record is not None)
    return Adoption(tuple(layer.id for layer in layers), limited, markers, lines)


def _fstab_lines(fstab: Path, root: Path) -> tuple[str, ...]:
    try:
        lines = fstab.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(line for line in lines if line.split()[:1] and line.split()[0].startswith(f"{root}/"))


def _refuse_mounted(layout: Layout, layers: list[Layer]) -> None:
    for layer in layers:
        for path in (layout.mnt(layer.id), layout.diff(layer.id)):
            if is_mount_point(path):
                raise Busy(f"{path} is mounted", hint="stop what uses it and unmount it", code="root.mounted")


def _adopt_layer(layout: Layout, records: Records, layer: Layer, shift: int) -> int:
    if (layout.meta / layer.id).exists():
        return 0  # done by an interrupted run
    branch = layout.diff(layer.id)
    if layer.record is None:
        markers = convert(branch, shift=shift) if branch.is_dir() else 0
        files.sync_file_system(layout.root)
        records.write_record(layer.id, None)
        return markers
    image = layout.root / "containers_quota" / f"{layer.id}.ext4"
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not files.try_flock(fd):
            raise Busy(f"{image} is attached", hint="detach it first", code="image.locked")
        if not read_superblock(fd, image).clean:
            repair(image)
        block = read_superblock(fd, image)
        with detached(image, layer.record.limit, block_size=512) as mount:
            markers = _move_content(mount, shift)
    except Error as error:
        raise type(error)(f"layer {layer.id}: {error.message}", hint=error.hint, code=error.code) from error
    finally:
        os.close(fd)
    limit = Limit(os.stat(image).st_size)
    records.write_record(layer.id, Record(limit=limit, limiter="image", uuid=block.uuid))
    return markers


def _move_content(mount: int, shift: int) -> int:
    """Move what is at the root of an image into its upper/, converted; ``mount`` is the detached root."""
    root = Path(f"/proc/self/fd/{mount}/.")
    upper = root / "upper"
    markers = 0
    if not (upper.is_dir() and xattr.find_xattr(os.fsencode(upper), _MARK)):
        stage = root / _STAGE
        stage.mkdir(mode=0o755, exist_ok=True)
        xattr.set_xattr(os.fsencode(stage), _MARK, b"1")
        status = os.stat(root)
        for name in os.listdir(root):
            if name.startswith(METADATA) and name != ".wh..wh..opq":
                continue
            if name not in (_STAGE, "lost+found"):
                os.rename(root / name, stage / name)
        os.chown(stage, status.st_uid, status.st_gid)
        markers = convert(stage, shift=shift)
        os.rename(stage, upper)
    (root / "work").mkdir(mode=0o711, exist_ok=True)
    files.sync_file_system(root)
    return markers
