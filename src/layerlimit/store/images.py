"""Whether the image of a limited layer is what its record says: its own, whole, and of the recorded limit."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from layerlimit.driver.layout import Layout
from layerlimit.driver.records import Records
from layerlimit.limit import MIB, ImageLimiter, format_size
from layerlimit.limit.ext4 import image_size, read_superblock

_TOLERANCE = 0.02  # of a size that was made to leave the limit within 1 %


def differences(root: Path, id: str) -> Iterator[tuple[str, str]]:
    """Codes and sentences; raises the typed errors of a record that cannot be read, or no ext4."""
    record = Records(Layout(root, go=False)).record(id)
    image = ImageLimiter(root).image(id)
    if record is None or not image.exists():
        return
    status = os.lstat(image)
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        yield "image.shared", f"{image} has {status.st_nlink} names: another layer may write into it"
    if not record.fresh_blocks or record.growing is not None:
        return  # made by the Go driver, whose sizes follow other rules; or about to change
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        block = read_superblock(fd, image)
    finally:
        os.close(fd)
    size = block.blocks * block.block_size
    per_group = 0 if record.limit.inodes is None else block.inodes_per_group
    wanted = image_size(record.limit, inodes_per_group=per_group)
    if abs(size - wanted) > wanted * _TOLERANCE + MIB:
        recorded = format_size(record.limit.bytes)
        message = f"layer {id} is recorded with a limit of {recorded}, but its file system has {size} bytes"
        yield "limit.mismatch", f"{message} instead of about {wanted}"
    elif status.st_size != size:
        yield "image.size", f"{image} is {status.st_size} bytes long, its file system has {size}"
