"""Which loop devices are on the images of a root, who keeps them mounted, and how to free them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from layerlimit.linux import mountinfo
from layerlimit.linux.loop import attached_devices

_DELETED = " (deleted)"
_LOOP_CLR_FD = 0x4C01


@dataclass(frozen=True, slots=True)
class Attached:
    """A loop device, the image that it is attached to, and whether that was deleted meanwhile."""

    path: Path
    image: Path
    deleted: bool


def attached_below(directory: Path) -> Iterator[Attached]:
    """The devices whose backing file is, or was, in ``directory``."""
    for device in attached_devices():
        found = _backing(device)
        if found is None:  # freed while we looked
            continue
        image, deleted = found
        if image.parent == directory:
            yield Attached(device, image, deleted)


def holders(device: Path) -> list[str]:
    """The processes in whose mount namespace ``device`` is mounted, one for each namespace but ours."""
    number = os.stat(device).st_rdev
    ours = os.stat("/proc/self/ns/mnt").st_ino
    return _processes(lambda pid: any(entry.device == number for entry in mountinfo.read(pid)), {ours})


def mounts_naming(id: str) -> list[str]:
    """The processes in whose mount namespace, ours too, a mount shows or stands on files of a layer.

    Ids are random: no other mount has one in its paths or options.
    """
    return _processes(lambda pid: id.encode() in Path(f"/proc/{pid}/mountinfo").read_bytes(), set())


def _processes(sees: Callable[[str], bool], seen: set[int]) -> list[str]:
    """One process for each mount namespace, but those ``seen`` already, in which ``sees`` holds."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            if sees(pid):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                found.append(f"process {pid} ({name})")
        except OSError:  # ended while we looked
            continue
    return found


def free(device: Attached) -> bool:
    """Detach a device; one that is mounted or open somewhere goes with its last user (LOOP_CLR_FD).

    False when it was given to another image meanwhile; while we have it open that cannot happen.
    """
    fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _backing(device.path) != (device.image, device.deleted):
            return False
        fcntl.ioctl(fd, _LOOP_CLR_FD, 0)
        return True
    finally:
        os.close(fd)


def _backing(device: Path) -> tuple[Path, bool] | None:
    """The file behind a device, and whether it was deleted; None when there is none."""
    try:
        text = (Path("/sys/block") / device.name / "loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return None
    return Path(text.removesuffix(_DELETED)), text.endswith(_DELETED)
