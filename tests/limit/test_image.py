"""One sparse ext4 per limited layer: exactly what was asked for, cheap, proven at every use."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from layerlimit.errors import AlreadyExists, Busy, Corrupt, InvalidArgument, OutOfSpace
from layerlimit.limit import MIB, ImageLimiter, Limit, Record, ext4, limiter
from layerlimit.linux import files
from layerlimit.linux.mount import MNT_DETACH, FsContext, unmount
from tests import scratch

pytestmark = pytest.mark.lane("root", "loop")

GIB = 1 << 30
KIB = 1 << 10
LIMIT = Limit(16 * MIB)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[ImageLimiter]:
    root = tmp_path / "root"
    root.mkdir()
    made = ImageLimiter(root)
    yield made
    for image in (root / "containers_quota").glob("*.ext4"):
        made.detach(image.stem)


def available(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def check(image: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", image], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def cost(image: Path) -> int:
    return image.stat().st_blocks * 512


# -- what was asked for ------------------------------------------------------------------------------

SIZES = {
    16 * MIB: 256 * KIB,
    16 * MIB + 1: 256 * KIB,
    23_456_789: 256 * KIB,
    64 * MIB: 256 * KIB,
    100_000_000: 256 * KIB,
    128 * MIB - 1: 256 * KIB,
    512 * MIB: 256 * KIB,
    GIB - 1: 256 * KIB,
    GIB: 256 * KIB,
    10 * GIB: 512 * KIB,
    33_333_333_333: 1 * MIB,
    100 * GIB: 1 * MIB,
    777_777_777_777: 5 * MIB,
    1024 * GIB: 5 * MIB,
}


@pytest.mark.guest
@pytest.mark.parametrize(("size", "idle"), SIZES.items(), ids=lambda number: f"{number}")
def test_usable_bytes_and_idle_cost(images: ImageLimiter, size: int, idle: int) -> None:
    record = images.create("a", Limit(size), (0, 0))
    place = images.attach("a", record)
    assert size <= available(place.upper) <= size * 1.01
    space = os.statvfs(place.upper)
    assert space.f_blocks * space.f_frsize <= max(size * 1.04, size + MIB)
    assert os.listdir(place.upper) == []
    os.sync()
    assert cost(images.image("a")) <= idle
    usage = images.usage("a", record)
    assert (usage.bytes, usage.inodes) == (0, 0)
    images.detach("a")
    assert cost(images.image("a")) <= idle
    assert images.usage("a", record) == usage
    check(images.image("a"))


@pytest.mark.parametrize("size", [4 * MIB, 5_000_000, 16 * MIB, 300 * MIB])
def test_without_a_journal(images: ImageLimiter, size: int) -> None:
    record = images.create("a", Limit(size, ephemeral=True), (0, 0))
    place = images.attach("a", record)
    assert size <= available(place.upper) <= size * 1.01
    assert cost(images.image("a")) <= 256 * KIB


@pytest.mark.parametrize("size", [1, MIB, ext4.MIN_BYTES - 1])
def test_too_small(images: ImageLimiter, size: int) -> None:
    with pytest.raises(InvalidArgument, match="too small"):
        images.create("a", Limit(size), (0, 0))
    assert not images.image("a").exists()


@pytest.mark.guest
@pytest.mark.parametrize(
    ("size", "inodes"), [(16 * MIB, 50), (16 * MIB, 1000), (64 * MIB, 100_000), (GIB, 777), (20 * GIB, 5000)]
)
def test_inodes(images: ImageLimiter, size: int, inodes: int) -> None:
    record = images.create("a", Limit(size, inodes=inodes), (0, 0))
    place = images.attach("a", record)
    assert size <= available(place.upper) <= size * 1.01
    space = os.statvfs(place.upper)
    block = subprocess.run(
        ["dumpe2fs", "-h", images.image("a")], check=True, capture_output=True, text=True
    ).stdout
    (per_group,) = [int(line.split()[-1]) for line in block.splitlines() if "Inodes per group" in line]
    assert inodes <= space.f_ffree <= inodes + per_group + ext4.SPARE_INODES
    assert images.usage("a", record).inodes == 0


def test_the_owner_of_the_top(images: ImageLimiter) -> None:
    record = images.create("a", LIMIT, (1234, 5678))
    status = images.attach("a", record).upper.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 5678, 0o755)


def test_upper_and_work_lie_on_one_mount(images: ImageLimiter, tmp_path: Path) -> None:
    place = images.attach("a", images.create("a", LIMIT, (0, 0)))
    assert place.work is not None
    assert place.upper.parent == place.work.parent == tmp_path / "root/img/a"
    assert os.path.samefile(place.upper, tmp_path / "root/diff/a")


# -- templates ---------------------------------------------------------------------------------------


def test_a_size_is_formatted_once(images: ImageLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    images.create("a", LIMIT, (0, 0))
    monkeypatch.setattr(ext4, "_run", pytest.fail)
    for id in ("b", "c"):
        images.create(id, LIMIT, (0, 0))


def test_clones_have_identities_of_their_own(images: ImageLimiter) -> None:
    records = [images.create(id, LIMIT, (0, 0)) for id in "abc"]
    assert len({record.uuid for record in records}) == 3
    for id, record in zip("abc", records, strict=True):
        check(images.image(id))
        with open(images.image(id), "rb") as file:
            assert ext4.read_superblock(file.fileno(), images.image(id)).uuid == record.uuid


def test_one_template_made_by_many_at_once(images: ImageLimiter, tmp_path: Path) -> None:
    others = [ImageLimiter(tmp_path / "root") for _ in range(8)]

    def create(number: int) -> Record:
        return others[number].create(f"id-{number}", LIMIT, (0, 0))

    with ThreadPoolExecutor(8) as pool:
        assert len({record.uuid for record in pool.map(create, range(8))}) == 8
    for number in range(8):
        check(images.image(f"id-{number}"))
    (template,) = (tmp_path / "root/templates").iterdir()
    assert template.suffix == ".ext4"


def test_old_templates_go(images: ImageLimiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerlimit.limit.template.KEEP", 2)
    for number in range(4):
        images.create(f"id-{number}", Limit(16 * MIB + number * 4096), (0, 0))
        time.sleep(0.01)
    assert len(list((tmp_path / "root/templates").iterdir())) == 2
    images.create("again", Limit(16 * MIB), (0, 0))


def test_templates_half_made_are_swept(images: ImageLimiter, tmp_path: Path) -> None:
    images.create("a", LIMIT, (0, 0))
    templates = tmp_path / "root/templates"
    dead = subprocess.Popen(["true"])
    dead.wait()
    (templates / f"1-x.ext4.{dead.pid}-aa.tmp").touch()
    (templates / f"2-x.ext4.{os.getpid()}-bb.tmp").touch()
    images.templates.sweep()
    assert {path.suffix for path in templates.iterdir()} == {".ext4", ".tmp"}
    assert [path.name[0] for path in templates.glob("*.tmp")] == ["2"]


# -- one attachment, proven --------------------------------------------------------------------------


def loops(image: Path) -> list[str]:
    done = subprocess.run(["losetup", "-j", image], check=True, capture_output=True, text=True)
    return [line.partition(":")[0] for line in done.stdout.splitlines()]


def test_attach_again_is_the_same(images: ImageLimiter) -> None:
    record = images.create("a", LIMIT, (0, 0))
    first = images.attach("a", record)
    assert first.fresh
    again = images.attach("a", record)
    assert again == replace(first, fresh=False)
    assert len(loops(images.image("a"))) == 1


def test_detach_again_is_nothing(images: ImageLimiter, tmp_path: Path) -> None:
    record = images.create("a", LIMIT, (0, 0))
    images.detach("a")
    images.attach("a", record)
    for _ in range(2):
        images.detach("a")
        assert not images.is_attached("a")
    assert scratch.leftovers(tmp_path, patience=5) == []


def test_a_live_device_is_found_and_used(images: ImageLimiter, tmp_path: Path) -> None:
    """Mounts taken away behind our back while a file is open: the same superblock comes back."""
    record = images.create("a", LIMIT, (0, 0))
    place = images.attach("a", record)
    with (place.upper / "file").open("w") as file:
        for point in scratch.mounts_below(tmp_path):
            unmount(point, flags=MNT_DETACH)
        assert not images.is_attached("a")
        again = images.attach("a", record)
        assert not again.fresh
        file.write("the same file")
        file.flush()
        assert (again.upper / "file").read_text() == "the same file"
        assert len(loops(images.image("a"))) == 1


def test_a_locked_image_is_busy(images: ImageLimiter) -> None:
    record = images.create("a", LIMIT, (0, 0))
    fd = os.open(images.image("a"), os.O_RDWR)
    try:
        assert files.try_flock(fd)
        with pytest.raises(Busy, match="locked"):
            images.attach("a", record)
    finally:
        os.close(fd)
    images.attach("a", record)


def test_the_lock_lives_in_the_device(images: ImageLimiter) -> None:
    images.attach("a", images.create("a", LIMIT, (0, 0)))
    fd = os.open(images.image("a"), os.O_RDWR)
    try:
        assert not files.try_flock(fd)
    finally:
        os.close(fd)


def test_another_mount_in_its_place_is_refused(images: ImageLimiter, tmp_path: Path) -> None:
    record = images.create("a", LIMIT, (0, 0))
    place = tmp_path / "root/img/a"
    with FsContext("tmpfs") as context:
        context.create()
        with context.mount() as mounted:
            mounted.attach(place)
    try:
        with pytest.raises(Corrupt) as caught:
            images.attach("a", record)
        assert caught.value.code == "image.foreign"
    finally:
        unmount(place)
    images.attach("a", record)


def test_another_layers_image_is_refused(images: ImageLimiter) -> None:
    one = images.create("one", LIMIT, (0, 0))
    two = images.create("two", LIMIT, (0, 0))
    os.rename(images.image("one"), images.image("x"))
    os.rename(images.image("two"), images.image("one"))
    os.rename(images.image("x"), images.image("two"))
    for id, record in (("one", one), ("two", two)):
        with pytest.raises(Corrupt) as caught:
            images.attach(id, record)
        assert caught.value.code == "image.swapped"
        assert not images.is_attached(id)


def test_an_image_replaced_in_use_is_noticed(images: ImageLimiter) -> None:
    record = images.create("a", LIMIT, (0, 0))
    images.attach("a", record)
    image = images.image("a")
    subprocess.run(["cp", "--sparse=always", image, image.with_suffix(".new")], check=True)
    os.replace(image, image.with_suffix(".old"))
    os.replace(image.with_suffix(".new"), image)
    with pytest.raises(Corrupt) as caught:
        images.attach("a", record)
    assert caught.value.code == "image.swapped"
    os.replace(image.with_suffix(".old"), image)
    images.attach("a", record)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("missing", "image.missing"),
        ("directory", "image.type"),
        ("link", "image.type"),
        ("zeros", "image.magic"),
        ("cut", "image.truncated"),
        ("no upper", "image.layout"),
    ],
)
def test_what_is_no_image_of_ours(images: ImageLimiter, how: str, code: str) -> None:
    record = images.create("a", LIMIT, (0, 0))
    image = images.image("a")
    if how == "zeros":
        os.truncate(image, 0)
        os.truncate(image, 32 * MIB)
    elif how == "cut":
        os.truncate(image, 8 * MIB)
    elif how == "no upper":
        subprocess.run(["debugfs", "-w", "-R", "rmdir upper", image], check=True, capture_output=True)
    else:
        os.rename(image, image.with_suffix(".away"))
        if how == "directory":
            image.mkdir()
        elif how == "link":
            image.symlink_to(image.with_suffix(".away"))
    with pytest.raises(Corrupt, match="a") as caught:
        images.attach("a", record)
    assert caught.value.code == code
    assert not images.is_attached("a")
    if how == "directory":
        image.rmdir()


def test_busy_while_a_file_is_open(images: ImageLimiter) -> None:
    record = images.create("a", LIMIT, (0, 0))
    place = images.attach("a", record)
    with (place.upper / "file").open("w"), pytest.raises(Busy, match="a"):
        images.detach("a")
    images.attach("a", record)


def test_read_only_until_somebody_writes(images: ImageLimiter) -> None:
    record = images.create("a", LIMIT, (0, 0))
    place = images.attach("a", record, read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (place.upper / "file").touch()
    images.attach("a", record)
    (place.upper / "file").touch()
    images.attach("a", record, read_only=True)
    (place.upper / "other").touch()


# -- failures of create ------------------------------------------------------------------------------


def test_create_twice(images: ImageLimiter) -> None:
    images.create("a", LIMIT, (0, 0))
    before = images.image("a").stat()
    with pytest.raises(AlreadyExists):
        images.create("a", LIMIT, (0, 0))
    assert images.image("a").stat().st_ino == before.st_ino


def test_no_room_to_reserve(tmp_path: Path) -> None:
    ground = tmp_path / "ground"
    ground.mkdir()
    with FsContext("tmpfs") as context:
        context.set_string("size", "24m")
        context.create()
        with context.mount() as mounted:
            mounted.attach(ground)
    try:
        images = ImageLimiter(ground)
        with pytest.raises(OutOfSpace):
            images.create("a", Limit(64 * MIB, reserve=True), (0, 0))
        assert not images.image("a").exists()
        images.create("a", Limit(64 * MIB), (0, 0))
    finally:
        unmount(ground)


# -- space that is freed -----------------------------------------------------------------------------


@pytest.mark.guest
def test_freed_space_returns_to_the_host(images: ImageLimiter) -> None:
    record = images.create("a", Limit(64 * MIB), (0, 0))
    place = images.attach("a", record)
    before = cost(images.image("a"))
    (place.upper / "file").write_bytes(os.urandom(32 * MIB))
    os.sync()
    assert cost(images.image("a")) > 32 * MIB
    assert images.usage("a", record).bytes >= 32 * MIB
    (place.upper / "file").unlink()
    os.sync()
    deadline = time.monotonic() + 20
    while cost(images.image("a")) > before + 4 * MIB:  # the journal stays
        assert time.monotonic() < deadline, "freed space did not return to the host"
        time.sleep(0.05)
    assert images.usage("a", record).bytes == 0


def test_the_table_of_limiters(tmp_path: Path) -> None:
    assert limiter("image", tmp_path).name == "image"
    with pytest.raises(InvalidArgument, match="none, image"):
        limiter("quota", tmp_path)


def test_what_belongs_to_a_layer(images: ImageLimiter, tmp_path: Path) -> None:
    images.create("a", LIMIT, (0, 0))
    assert images.files("a") == [images.image("a"), tmp_path / "root/img/a"]
    assert all(path.exists() for path in images.files("a"))


# -- what is committed ---------------------------------------------------------------------------------


@pytest.mark.guest
def test_sync_reaches_what_only_another_namespace_has_mounted(images: ImageLimiter, tmp_path: Path) -> None:
    """A copy of our mount keeps the file system alive: our unmount was not the last and wrote nothing out."""
    record = images.create("a", LIMIT, (0, 0))
    place = images.attach("a", record)
    keeping = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"]
    (place.upper / "file").write_bytes(b"committed")
    with subprocess.Popen(keeping, stdout=subprocess.PIPE) as keeper:
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == b"\n"
            images.detach("a")
            images.sync("a")
            image = tmp_path / "as a power cut leaves it"
            image.write_bytes(images.image("a").read_bytes())
        finally:
            keeper.kill()
    subprocess.run(["e2fsck", "-fp", image], check=False, capture_output=True)
    shown = subprocess.run(["debugfs", "-R", "cat upper/file", image], check=True, capture_output=True)
    assert shown.stdout == b"committed"


def test_a_user_that_goes_is_waited_for(images: ImageLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    place = images.attach("a", images.create("a", LIMIT, (0, 0)))
    file = (place.upper / "file").open("w")

    def busy_once(path: Path) -> None:
        try:
            unmount(path)
        except OSError:
            file.close()
            raise

    monkeypatch.setattr("layerlimit.limit.image.mount.unmount", busy_once)
    images.detach("a")
    assert file.closed
    assert not images.is_attached("a")
