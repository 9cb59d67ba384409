"""A limited layer, an ext4 image on a loop device below an overlay, and root inside that tries to undo it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerlimit.errors import InvalidArgument
from layerlimit.linux.mount import mount, unmount
from layerlimit.sandbox import run
from tests.sandbox.conftest import overlay_of_host, python_of
from tests.sandbox.inside import Inside, outside

pytestmark = pytest.mark.lane("root", "overlay", "loop")

MIB = 1 << 20
SIZE = 32 * MIB
DEBUGFS = "debugfs -w -R 'set_super_value reserved_blocks_count 0'"


@dataclass(frozen=True, slots=True)
class Limited:
    inside: Inside
    device: Path
    place: Path  # where the image is mounted


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    image, place, target = tmp_path / "image", tmp_path / "place", tmp_path / "root"
    place.mkdir()
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    attach = ["losetup", "--find", "--show", str(image)]
    device = Path(subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip())
    try:
        mount(device, place, "ext4")
        # From now on the device goes when its file system does: the end shows that nothing holds it.
        subprocess.run(["losetup", "--detach", str(device)], check=True)
        try:
            (place / "upper").mkdir()
            (place / "work").mkdir()
            with overlay_of_host(place / "upper", place / "work", target):
                yield Limited(Inside(target, python_of(target)), device, place)
        finally:
            unmount(place)
        assert not Path("/sys/block", device.name, "loop").exists()
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=False, capture_output=True)


@pytest.mark.guest
def test_the_limit_holds_against_root_inside(limited: Limited) -> None:
    inside, name = limited.inside, limited.device.name
    minor = os.minor(limited.device.stat().st_rdev)
    before = os.statvfs(limited.place)
    outside_too = subprocess.run(f"{DEBUGFS} {limited.device}", shell=True, check=True, capture_output=True)
    assert b"not open" not in outside_too.stderr
    for attempt in (
        f"mknod /loop b 7 {minor}",
        f"mknod /dev/loop b 7 {minor}",
        "mknod /dev/loop-control c 10 237",
        "mount -o remount,size=1g /",
        "mount -t tmpfs none /tmp",
        f"mount -t devtmpfs none /dev || cat /dev/{name}",
        "unshare --user --map-root-user --mount mount -t tmpfs none /tmp",
        f"! {DEBUGFS} /dev/{name} 2>&1 | grep 'not open'",
        f"resize2fs -f /dev/{name} 64M",
        f"losetup --set-capacity /dev/{name}",
        f"dd if=/dev/zero of=/dev/{name} bs=4096 count=1 conv=nocreat",
        f"echo 1 > /sys/block/{name}/queue/read_ahead_kb",
        "echo 0 > /sys/fs/ext4/*/reserved_clusters",
        "fsfreeze --freeze /",
        "fstrim /",
        "chattr -R +i /etc/passwd",
        "swapon /etc/passwd",
        "nsenter --target 1 --mount true",
        "nsenter --target 2 --net true",
    ):
        done = inside.sh(attempt, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        assert done.code != 0, (attempt, done)
        assert "not found" not in done.err, (attempt, done)
    filled = inside.sh("cat /dev/zero > /fill; stat -c %s /fill; df --output=size -B1 / | tail -n 1")
    assert "No space left on device" in filled.err
    written, shown = (int(word) for word in filled.out.split())
    after = os.statvfs(limited.place)
    assert written <= before.f_bavail * before.f_frsize
    assert shown == before.f_blocks * before.f_frsize
    assert after.f_blocks == before.f_blocks
    assert after.f_bavail * after.f_frsize < MIB


# The file system's own controls, on a descriptor of it.
CONTROLS = """
fd = {fd}
attempt("resize", lambda: check(libc.ioctl(fd, ctypes.c_ulong(0x40086610), struct.pack("Q", 1 << 13))))
attempt("shutdown", lambda: check(libc.ioctl(fd, ctypes.c_ulong(0x8004587D), struct.pack("I", 9))))
attempt("immutable", lambda: check(libc.ioctl(fd, ctypes.c_ulong(0x40086602), struct.pack("I", 0x80010))))
attempt("trim", lambda: check(libc.ioctl(fd, ctypes.c_ulong(0xC0185879), struct.pack("QQQ", 0, 1 << 40, 0))))
"""


def test_the_file_systems_own_controls_are_refused(limited: Limited) -> None:
    path = limited.place / "file"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    try:
        found = limited.inside.python(CONTROLS.format(fd=0), stdin=fd)
    finally:
        os.close(fd)
    assert found == {"resize": "EPERM", "shutdown": "EPERM", "immutable": "EPERM", "trim": "EPERM"}
    harmless = [line for line in CONTROLS.splitlines() if "resize" not in line and "shutdown" not in line]
    program = "\n".join(harmless).format(fd=f"os.open({str(path)!r}, os.O_RDWR)")
    assert outside(program, [limited.inside.interpreter]) == {"immutable": "ok", "trim": "ok"}
    subprocess.run(["chattr", "-i", str(path)], check=True)


def test_the_device_is_not_passed_as_a_stream(limited: Limited) -> None:
    with limited.device.open("rb") as file, pytest.raises(InvalidArgument, match="block device"):
        run(limited.inside.root, ["true"], stdin=file.fileno())


def test_the_device_is_free_as_soon_as_the_run_is_over(limited: Limited) -> None:
    """The fixture asserts it: no copy of the mounts, no process and no descriptor is left."""
    for _ in range(5):
        assert limited.inside.sh("sleep 60 & exec 3< /etc/passwd; echo x > /x; exit 4").code == 4
