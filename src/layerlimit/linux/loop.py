"""Loop devices: attach an image file, find the device it is attached to, tell it that the file grew.

Source: ``include/uapi/linux/loop.h``. ``LOOP_CONFIGURE`` (Linux 5.8) sets everything in one call, so
a crash leaves either no attachment or a complete one with ``LO_FLAGS_AUTOCLEAR``, which the kernel
undoes when the last opener (a mount counts as one) goes away.

The caller takes a ``flock`` on the image before :func:`attach`: the device keeps the open file, and
with it the lock, until it dies, so a second attachment of one image cannot be made by accident.
Errors are :class:`OSError` with errno, the name of the call and the path.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOOP_GET_STATUS64 = 0x4C05
LOOP_SET_CAPACITY = 0x4C07
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

_INFO64 = struct.Struct("=QQQQQIIII64s64s32s2Q")  # struct loop_info64
_CONFIG = struct.Struct("=II232s8Q")  # struct loop_config
_CONTROL = "/dev/loop-control"
_ATTEMPTS = 200  # races for a free device that we may lose before giving up
_LOOP_MAJOR = 7


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """What ``LOOP_GET_STATUS64`` says: the backing file by device and inode, and the flags."""

    device: int
    inode: int
    flags: int

    def backs(self, image: os.stat_result) -> bool:
        """Whether the backing file is the file that ``image`` is the stat of."""
        return (self.device, self.inode) == (image.st_dev, image.st_ino)


@dataclass(slots=True)
class Loop:
    """An open loop device; closing it frees an autoclear device that nothing mounts."""

    path: Path
    fd: int

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def status(self) -> LoopStatus:
        """The backing file and flags; ENXIO when nothing is attached."""
        return _status(self.fd, self.path)

    def refresh_capacity(self) -> None:
        """Take over the size of a backing file that has grown (LOOP_SET_CAPACITY)."""
        _ioctl(self.fd, LOOP_SET_CAPACITY, 0, "LOOP_SET_CAPACITY", self.path)


def _ioctl(fd: int, request: int, argument: int | bytes, call: str, path: Path | str) -> int | bytes:
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, f"{call}: {os.strerror(error.errno or 0)}", str(path)) from None


def _status(fd: int, path: Path) -> LoopStatus:
    raw = _ioctl(fd, LOOP_GET_STATUS64, bytes(_INFO64.size), "LOOP_GET_STATUS64", path)
    assert isinstance(raw, bytes)
    fields = _INFO64.unpack(raw)
    return LoopStatus(device=fields[0], inode=fields[1], flags=fields[8])


def _open_device(number: int) -> int:
    """Open ``/dev/loopN``; makes the node when no device manager has done so yet."""
    path = f"/dev/loop{number}"
    for attempt in range(20):
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if attempt == 10:
                try:
                    os.mknod(path, 0o60660, os.makedev(_LOOP_MAJOR, number))
                except FileExistsError:
                    pass
            time.sleep(0.005)
        except OSError as error:
            if error.errno != errno.ENXIO:  # removed between GET_FREE and open
                raise
            time.sleep(0.005)
    raise OSError(errno.ENOENT, "open: no device node", path)


def attach(
    image_fd: int, image: Path, *, block_size: int = 4096, direct_io: bool = True, read_only: bool = False
) -> Loop:
    """Attach the open file ``image_fd`` to a free loop device, autoclear, and return it open.

    ``image`` is only for the device's name field and for errors. ``direct_io`` is a wish: on a disk
    that cannot do it the kernel uses the page cache. ``read_only`` makes writes to the device fail.
    Raises OSError: ENXIO or ENODEV without loop support, EBUSY when no free device could be won.
    """
    flags = LO_FLAGS_AUTOCLEAR
    flags |= LO_FLAGS_DIRECT_IO if direct_io else 0
    flags |= LO_FLAGS_READ_ONLY if read_only else 0
    name = os.fsencode(image)[-63:]
    info = _INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            number = _ioctl(control, LOOP_CTL_GET_FREE, 0, "LOOP_CTL_GET_FREE", _CONTROL)
            assert isinstance(number, int)
            fd = _open_device(number)
            config = _CONFIG.pack(image_fd, block_size, info, *([0] * 8))
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, config)
                return Loop(Path(f"/dev/loop{number}"), fd)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    text = f"LOOP_CONFIGURE: {os.strerror(error.errno or 0)}"
                    raise OSError(error.errno, text, str(image)) from None
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"LOOP_CONFIGURE: lost {_ATTEMPTS} races for a free device", str(image))


def open_by_number(major: int, minor: int) -> Loop:
    """The loop device with this device number, open; ENXIO when it is not a loop device."""
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    except FileNotFoundError:
        raise OSError(errno.ENXIO, "readlink: no such block device", f"{major}:{minor}") from None
    if major != _LOOP_MAJOR or not name.startswith("loop"):
        raise OSError(errno.ENXIO, "not a loop device", f"/dev/{name}")
    path = Path("/dev") / name
    return Loop(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def attached_devices() -> Iterator[Path]:
    """The loop devices that have a backing file, by name; a race with detaching is possible."""
    with os.scandir("/sys/block") as entries:
        names = [entry.name for entry in entries if entry.name.startswith("loop")]
    for name in sorted(names, key=lambda n: (len(n), n)):
        if os.path.exists(f"/sys/block/{name}/loop/backing_file"):
            yield Path("/dev") / name


def find(image: os.stat_result) -> Loop | None:
    """The live device that ``image`` is attached to, open; None when there is none.

    Compares device and inode of the backing file, never names. Costs a scan of /sys/block.
    """
    for path in attached_devices():
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if _status(fd, path).backs(image):
                return Loop(path, fd)
        except OSError:  # freed while we looked
            pass
        os.close(fd)
    return None
