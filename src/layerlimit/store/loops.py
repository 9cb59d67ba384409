"""Which loop devices are attached to the images of a root, and which processes keep them mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerlimit.linux import mountinfo
from layerlimit.linux.loop import attached_devices

_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Attached:
    """A loop device, the image that it is attached to, and whether that was deleted meanwhile."""

    path: Path
    image: Path
    deleted: bool


def attached_below(directory: Path) -> Iterator[Attached]:
    """The devices whose backing file is, or was, in ``directory``."""
    for device in attached_devices():
        try:
            backing = (Path("/sys/block") / device.name / "loop/backing_file").read_text().rstrip("\n")
        except OSError:  # freed while we looked
            continue
        image = Path(backing.removesuffix(_DELETED))
        if image.parent == directory:
            yield Attached(device, image, backing.endswith(_DELETED))


def holders(device: Path) -> list[str]:
    """The processes in whose mount namespace ``device`` is mounted, one for each namespace but ours."""
    number = os.stat(device).st_rdev
    ours = os.stat("/proc/self/ns/mnt").st_ino
    seen = {ours}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(entry.device == number for entry in mountinfo.read(pid)):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                found.append(f"process {pid} ({name})")
        except OSError:  # ended while we looked
            continue
    return found
