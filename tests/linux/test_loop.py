"""Loop devices: attaching, finding, racing, freeing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerlimit.linux import loop

pytestmark = pytest.mark.lane("root", "loop")

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    with made.open("wb") as file:
        file.truncate(4 * MIB)
    return made


def attach(image: Path, *, read_only: bool = False, block_size: int = 4096) -> loop.Loop:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        return loop.attach(fd, image, read_only=read_only, block_size=block_size)
    finally:
        os.close(fd)


def is_free(image: Path, patience: float = 5.0) -> bool:
    """Whether no device has the image; autoclear may take some milliseconds."""
    deadline = time.monotonic() + patience
    while (found := loop.find(image.stat())) is not None:
        found.close()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_what_is_written_to_the_device_is_in_the_image(image: Path) -> None:
    with attach(image) as device:
        os.pwrite(device.fd, b"x" * 4096, 8192)
        os.fsync(device.fd)
        assert image.read_bytes()[8190:8194] == b"\0\0xx"
        status = device.status()
        assert status.backs(image.stat())
        assert not status.backs(Path("/").stat())
        assert status.flags & loop.LO_FLAGS_AUTOCLEAR
        assert not status.flags & loop.LO_FLAGS_READ_ONLY
        sectors = Path("/sys/block", device.path.name, "queue/logical_block_size").read_text()
        assert sectors == "4096\n"
    device.close()  # once more does nothing
    assert is_free(image)


def test_a_read_only_device_cannot_be_written(image: Path) -> None:
    with attach(image, read_only=True, block_size=512) as device:
        assert device.status().flags & loop.LO_FLAGS_READ_ONLY
        with pytest.raises(PermissionError):
            os.pwrite(device.fd, b"x" * 512, 0)
    assert image.read_bytes() == bytes(4 * MIB)


def test_the_live_device_of_an_image_is_found(image: Path) -> None:
    assert loop.find(image.stat()) is None
    with attach(image) as device:
        with loop.find(image.stat()) or pytest.fail("not found") as found:
            assert found.path == device.path
        assert device.path in list(loop.attached_devices())
        number = os.fstat(device.fd).st_rdev
        with loop.open_by_number(os.major(number), os.minor(number)) as same:
            assert same.path == device.path
            assert same.status() == device.status()
        other = image.with_name("other")
        other.write_bytes(image.read_bytes())
        assert loop.find(other.stat()) is None
    assert is_free(image)


def test_renaming_the_image_does_not_hide_its_device(image: Path) -> None:
    with attach(image) as device:
        moved = image.rename(image.with_name("moved"))
        image.write_bytes(bytes(MIB))
        with loop.find(moved.stat()) or pytest.fail("not found") as found:
            assert found.path == device.path
        assert loop.find(image.stat()) is None


def test_what_is_no_loop_device() -> None:
    with pytest.raises(OSError, match="no such block device") as caught:
        loop.open_by_number(7, 1 << 19)
    assert caught.value.errno == errno.ENXIO
    root = os.stat("/").st_dev
    if os.major(root):
        with pytest.raises(OSError, match=r"not a loop device") as other:
            loop.open_by_number(os.major(root), os.minor(root))
        assert other.value.errno == errno.ENXIO


def test_the_lock_on_the_image_lives_as_long_as_the_device(image: Path) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    device = loop.attach(fd, image)
    os.close(fd)
    with image.open() as second:
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        device.close()
        assert is_free(image)
        deadline = time.monotonic() + 5
        while True:
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_grown_image_is_taken_over(image: Path) -> None:
    with attach(image) as device:
        assert os.lseek(device.fd, 0, os.SEEK_END) == 4 * MIB
        os.truncate(image, 8 * MIB)
        device.refresh_capacity()
        assert os.lseek(device.fd, 0, os.SEEK_END) == 8 * MIB


def test_errors_name_the_call_and_the_image(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="LOOP_CONFIGURE") as caught:
            loop.attach(directory, tmp_path)
        assert caught.value.filename == os.fspath(tmp_path)
    finally:
        os.close(directory)


def test_many_attach_at_the_same_time(tmp_path: Path) -> None:
    images = [tmp_path / f"image-{number}" for number in range(12)]
    for number, image in enumerate(images):
        image.write_bytes(bytes([number]) * MIB)
    with ThreadPoolExecutor(6) as pool:
        devices = list(pool.map(attach, images))
    try:
        assert len({device.path for device in devices}) == len(images)
        for number, device in enumerate(devices):
            assert os.pread(device.fd, 1, 0) == bytes([number])
    finally:
        for device in devices:
            device.close()
    assert all(map(is_free, images))


def test_kill_9_frees_the_device(image: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from layerlimit.linux import loop\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "loop.attach(fd, Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, image], check=False).returncode == -9
    assert is_free(image)
