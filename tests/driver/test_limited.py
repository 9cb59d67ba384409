"""Layers with a limit: as parents of each other, growing, reserved, ephemeral, damaged."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from layerlimit import Driver, Limit
from layerlimit.errors import Busy, Corrupt, InvalidArgument, NotSupported, OutOfSpace
from layerlimit.limit import MIB
from layerlimit.union import Aufs, Overlay, Union
from tests import lanes, scratch
from tests.driver import goroot
from tests.driver.filling import fill, fill_inodes

LIMIT = Limit(16 * MIB)


@pytest.fixture(
    params=[
        pytest.param(Overlay(), id="overlay", marks=pytest.mark.lane("root", "overlay", "loop")),
        pytest.param(Aufs(), id="aufs", marks=pytest.mark.lane("root", "aufs", "loop")),
    ]
)
def driver(root: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    union: Union = request.param
    made = Driver(root, union)
    yield made
    made.cleanup()


def attached(driver: Driver) -> set[str]:
    """The layers whose image has a loop device, once those on their way out are gone."""
    deadline = time.monotonic() + 5
    while True:
        names = set()
        for device in scratch.loops_below(driver.root):
            backing = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
            names.add(Path(backing).name.removesuffix(".ext4"))
        mounted = {
            point.name for point in scratch.mounts_below(driver.root) if point.parent == driver.root / "img"
        }
        if names == mounted or time.monotonic() > deadline:
            assert names == mounted
            return names
        time.sleep(0.02)


def chain(driver: Driver, length: int) -> list[str]:
    """``length`` limited layers over each other, each with a file of its own."""
    ids = [f"layer-{number}" for number in range(length)]
    for parent, id in zip(["", *ids], ids, strict=False):
        driver.create(id, parent, limit=LIMIT)
        with driver.mounted(id) as path:
            (path / id).write_text(id)
    return ids


# -- parents -----------------------------------------------------------------------------------------


def test_images_of_all_ancestors_are_attached_and_given_up(driver: Driver) -> None:
    ids = chain(driver, 4)
    assert attached(driver) == set()
    path = driver.get(ids[-1])
    assert {name.name for name in path.iterdir()} == set(ids)
    assert attached(driver) == set(ids)
    driver.put(ids[-1])
    assert attached(driver) == set()


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_given_up_in_any_order(driver: Driver, order: tuple[int, ...]) -> None:
    """Whoever is put last, what the others need stays attached."""
    ids = chain(driver, 3)
    paths = [driver.get(id) for id in ids]
    held = set(range(3))
    for number in order:
        driver.put(ids[number])
        held.discard(number)
        assert attached(driver) == {ids[below] for top in held for below in range(top + 1)}
        for top in held:
            assert (paths[top] / ids[0]).read_text() == ids[0]
            (paths[top] / "written").write_text("still writable")


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_taken_in_any_order(driver: Driver, order: tuple[int, ...]) -> None:
    """A parent's image that a child attached read-only turns writable when the parent itself is used."""
    ids = chain(driver, 3)
    for number in order:
        (driver.get(ids[number]) / f"new-{number}").write_text("x")
    for id in ids:
        driver.put(id)
    for number, id in enumerate(ids):
        with driver.mounted(id) as path:
            assert {f"new-{below}" for below in range(number + 1)} <= set(os.listdir(path))


def test_siblings_share_a_parent(driver: Driver) -> None:
    chain(driver, 1)
    for id in ("one", "two"):
        driver.create(id, "layer-0", limit=LIMIT)
    one, two = driver.get("one"), driver.get("two")
    (one / "layer-0").unlink()
    assert (two / "layer-0").exists()
    driver.put("one")
    assert attached(driver) == {"layer-0", "two"}
    driver.put("two")
    assert attached(driver) == set()


def test_a_parent_is_read_only_below_its_child(driver: Driver) -> None:
    chain(driver, 2)
    driver.get("layer-1")
    options = subprocess.run(
        ["findmnt", "-no", "OPTIONS", driver.root / "img/layer-0"], check=True, capture_output=True, text=True
    )
    assert "ro" in options.stdout.strip().split(",")


def test_plain_and_limited_layers_mixed(driver: Driver) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    driver.create("plain", "limited")
    driver.create("top", "plain", limit=LIMIT)
    for id in ("base", "limited", "plain", "top"):
        with driver.mounted(id) as path:
            (path / id).write_text(id)
    with driver.mounted("top") as path:
        assert {name.name for name in path.iterdir()} == {"base", "limited", "plain", "top"}
        assert attached(driver) == {"limited", "top"}
    assert attached(driver) == set()
    assert [str(change) for change in driver.changes("plain")] == ["A /plain"]
    assert attached(driver) == set()


def test_the_limit_is_of_the_layer_alone(driver: Driver) -> None:
    driver.create("base", limit=LIMIT)
    with driver.mounted("base") as path:
        assert fill(path / "full", 10 * MIB) == (10 * MIB, 0)
    driver.create("child", "base", limit=LIMIT)
    with driver.mounted("child") as path:
        written, error = fill(path / "own", 64 * MIB)
        assert error == errno.ENOSPC
        assert LIMIT.bytes * 0.98 <= written <= LIMIT.bytes * 1.01
        assert fill(path / "full", MIB) == (0, errno.ENOSPC)  # there is no room to copy it up
        assert (path / "full").stat().st_size == 10 * MIB
        assert (path / "own").stat().st_size == written


def test_exports_of_unmounted_chains(driver: Driver) -> None:
    ids = chain(driver, 3)
    with driver.mounted(ids[2]) as path:
        (path / ids[0]).unlink()
    assert [str(change) for change in driver.changes(ids[2])] == [f"D /{ids[0]}", f"A /{ids[2]}"]
    with driver.diff(ids[2]) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        assert sorted(tar.getnames()) == [f".wh.{ids[0]}", ids[2]]
    assert driver.diff_size(ids[2]) == len(ids[2])
    assert attached(driver) == set()


def test_a_diff_that_is_being_read_holds_its_layers(driver: Driver) -> None:
    ids = chain(driver, 3)
    with driver.diff(ids[2]) as stream:
        assert attached(driver) == set(ids)
        driver.get(ids[2])
        driver.put(ids[2])
        assert attached(driver) == set(ids)
        with pytest.raises(Busy):
            driver.remove(ids[2])
        stream.read()
    assert attached(driver) == set()


def test_a_bomb_ends_at_the_limit(driver: Driver) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "kept").write_text("kept")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        member = tarfile.TarInfo("bomb")
        member.size = 64 * MIB
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    raw.seek(0)
    with pytest.raises(OutOfSpace):
        driver.apply_diff("limited", raw)
    assert attached(driver) == set()
    with driver.mounted("limited") as path:
        assert [name.name for name in path.iterdir()] == ["kept"]
        assert fill(path / "room", 12 * MIB) == (12 * MIB, 0)


def test_apply_keeps_what_is_there(driver: Driver) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "kept").write_text("kept")
        (path / "replaced").write_text("old")
        (path / "directory").mkdir(mode=0o750)
        os.setxattr(path / "directory", "user.note", b"kept")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in ("replaced", "new"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"tar"))
    raw.seek(0)
    assert driver.apply_diff("limited", raw) == 6
    with driver.mounted("limited") as path:
        texts = {name.name: name.read_text() for name in path.iterdir() if name.is_file()}
        assert texts == {"kept": "kept", "replaced": "tar", "new": "tar"}
        assert (path / "directory").stat().st_mode & 0o777 == 0o750
        assert os.getxattr(path / "directory", "user.note") == b"kept"


# -- growing -----------------------------------------------------------------------------------------


def test_grow_while_unmounted(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "kept").write_text("kept")
    for size in (17 * MIB, 100 * MIB + 1, 3 << 30):
        driver.resize("limited", Limit(size))
        assert driver.limit("limited") == Limit(size)
        assert Driver(root, driver._union).limit("limited") == Limit(size)
        with driver.mounted("limited") as path:
            space = os.statvfs(path)
            used = driver.usage("limited").bytes
            assert size <= space.f_bavail * space.f_frsize + used <= size * 1.01
            assert used < MIB
            assert (path / "kept").read_text() == "kept"
    goroot.run("e2fsck", "-fn", root / "containers_quota/limited.ext4")


def test_shrinking_and_other_resizes_are_refused(driver: Driver) -> None:
    driver.create("plain")
    driver.create("limited", limit=LIMIT)
    with pytest.raises(InvalidArgument, match="shrink") as caught:
        driver.resize("limited", Limit(LIMIT.bytes - 1))
    assert caught.value.code == "resize.shrink"
    with pytest.raises(InvalidArgument, match="without a limit"):
        driver.resize("plain", LIMIT)
    driver.resize("limited", LIMIT)
    assert driver.limit("limited") == LIMIT


def test_grow_while_mounted(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    image = root / "containers_quota/limited.ext4"
    length = image.stat().st_size
    driver.resize("limited", LIMIT)  # nothing to do is no failure
    assert fill(path / "full", 64 * MIB)[1] == errno.ENOSPC
    if lanes.capabilities() >> 24 & 1:
        driver.resize("limited", Limit(64 * MIB))
        assert driver.limit("limited") == Limit(64 * MIB)
    else:
        with pytest.raises(NotSupported, match="CAP_SYS_RESOURCE") as caught:
            driver.resize("limited", Limit(64 * MIB))
        assert caught.value.code == "resize.online"
        assert driver.limit("limited") == LIMIT
        assert image.stat().st_size == length
        assert fill(path / "full", 64 * MIB)[1] == errno.ENOSPC
        (path / "full").write_text("usable afterwards")
        driver.put("limited")
        driver.resize("limited", Limit(64 * MIB))
        path = driver.get("limited")
    more, error = fill(path / "more", 40 * MIB)
    assert (more, error) == (40 * MIB, 0)
    assert fill(path / "more", 64 * MIB)[1] == errno.ENOSPC
    driver.put("limited")
    goroot.run("e2fsck", "-fn", image)


def test_a_growth_that_died_while_mounted(
    driver: Driver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next mount finishes it; where a mounted ext4 cannot grow, the limit stays and the mount goes on."""
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    image = root / "containers_quota/limited.ext4"
    length = image.stat().st_size

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver._limiter, "_grow_online", die)
        with pytest.raises(KeyboardInterrupt):
            driver.resize("limited", Limit(64 * MIB))
    assert driver.inspect_image("limited")[0][0] == "resize.unfinished"
    other = Driver(root, driver._union)
    assert other.get("limited") == path
    assert other.inspect_image("limited") == []
    if lanes.capabilities() >> 24 & 1:
        assert other.limit("limited") == Limit(64 * MIB)
    else:
        assert (other.limit("limited"), image.stat().st_size) == (LIMIT, length)
    driver.put("limited")
    driver.put("limited")
    driver.resize("limited", Limit(64 * MIB))
    with driver.mounted("limited") as path:
        assert fill(path / "more", 60 * MIB) == (60 * MIB, 0)


@pytest.mark.lane("resource")
@pytest.mark.guest
def test_grow_online_keeps_the_promise(driver: Driver, root: Path) -> None:
    """Growing under a writer; what can be used is what was asked for."""
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    with (path / "open").open("wb", buffering=0) as file:
        for size in (64 * MIB, 300 * MIB + 4097, 9 << 30):
            file.write(b"x" * MIB)
            driver.resize("limited", Limit(size))
            space = os.statvfs(path)
            used = driver.usage("limited").bytes
            # What ext4 keeps back (2 %) is that of the old size until the next mount.
            assert size <= space.f_bavail * space.f_frsize + used <= size * 1.03
    assert driver.usage("limited").inodes >= 1
    driver.put("limited")
    with driver.mounted("limited") as path:
        space = os.statvfs(path)
        used = driver.usage("limited").bytes
        assert size <= space.f_bavail * space.f_frsize + used <= size * 1.01
    goroot.run("e2fsck", "-fn", root / "containers_quota/limited.ext4")


@pytest.mark.guest
def test_a_parent_below_a_mounted_child_is_not_grown_under_it(driver: Driver) -> None:
    chain(driver, 2)
    driver.get("layer-1")
    with pytest.raises(NotSupported) as caught:
        driver.resize("layer-0", Limit(64 * MIB))
    assert caught.value.code == "resize.online"
    assert driver.limit("layer-0") == LIMIT
    driver.put("layer-1")
    driver.resize("layer-0", Limit(64 * MIB))
    with driver.mounted("layer-0") as path:
        assert fill(path / "more", 40 * MIB) == (40 * MIB, 0)


# -- kinds of limits ---------------------------------------------------------------------------------


def test_reserved_space_is_taken_at_once_and_stays(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("reserved", "base", limit=Limit(16 * MIB, reserve=True))
    image = root / "containers_quota/reserved.ext4"
    size = image.stat().st_size
    assert image.stat().st_blocks * 512 >= size
    with driver.mounted("reserved") as path:
        (path / "file").write_bytes(os.urandom(8 * MIB))
        os.sync()
        (path / "file").unlink()
        os.sync()
    assert image.stat().st_blocks * 512 >= size
    driver.resize("reserved", Limit(32 * MIB, reserve=True))
    assert driver.limit("reserved") == Limit(32 * MIB, reserve=True)
    assert image.stat().st_size > 32 * MIB
    assert image.stat().st_blocks * 512 >= image.stat().st_size


def test_ephemeral_layers_say_so(driver: Driver, root: Path) -> None:
    driver.create("base")
    assert not [value for key, value in driver.status() if "Ephemeral" in key]
    driver.create("fleeting", "base", limit=Limit(16 * MIB, ephemeral=True))
    assert [value for key, value in driver.status() if "Ephemeral" in key] == ["fleeting"]
    assert driver.limit("fleeting") == Limit(16 * MIB, ephemeral=True)
    features = subprocess.run(
        ["dumpe2fs", "-h", root / "containers_quota/fleeting.ext4"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "has_journal" not in features.stdout
    with driver.mounted("fleeting") as path:
        assert fill(path / "file", 64 * MIB)[1] == errno.ENOSPC


@pytest.mark.parametrize("inodes", [100, 5000])
def test_inode_limits(driver: Driver, inodes: int) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=Limit(32 * MIB, inodes=inodes))
    path = driver.get("limited")
    made, error = fill_inodes(path, 20_000)
    assert error == errno.ENOSPC
    assert inodes <= made <= inodes + 8192
    assert driver.usage("limited").inodes >= made


def test_inode_limits_grow(driver: Driver) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=Limit(1 << 30, inodes=64))
    for size, inodes in ((1 << 30, 100), (8 << 30, 500), (8 << 30, 900)):
        driver.resize("limited", Limit(size, inodes=inodes))
        assert driver.limit("limited") == Limit(size, inodes=inodes)
        with driver.mounted("limited") as path:
            made, error = fill_inodes(path, 5000)
            assert error == errno.ENOSPC
            assert inodes <= made <= inodes + 1024
            assert made <= driver.usage("limited").inodes <= made + 5
            for number in range(made):
                (path / str(number)).unlink()
            assert driver.usage("limited").inodes <= 5
    with pytest.raises(InvalidArgument) as caught:
        driver.resize("limited", Limit(9 << 30, inodes=899))
    assert caught.value.code == "resize.shrink"
    with pytest.raises(InvalidArgument) as caught:
        driver.resize("limited", Limit(9 << 30, inodes=1_000_000))
    assert caught.value.code == "resize.inodes"
    assert driver.limit("limited") == Limit(8 << 30, inodes=900)
    driver.create("many", "base", limit=LIMIT)
    with pytest.raises(InvalidArgument) as caught:
        driver.resize("many", Limit(LIMIT.bytes, inodes=100))
    assert caught.value.code == "resize.shrink"


# -- damage ------------------------------------------------------------------------------------------


def hurt(driver: Driver, id: str) -> None:
    """Tell the kernel that the mounted image met an error, as a bad disk would."""
    device = os.stat(driver.root / "img" / id).st_dev
    name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("a test asked for it")


def test_a_degraded_layer_says_so_and_heals(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    path = driver.get("limited")
    (path / "kept").write_text("kept")
    os.sync()
    hurt(driver, "limited")
    with pytest.raises(OSError):
        (path / "new").write_text("x")
    health = driver.state("limited").health
    assert health.state == "degraded"
    assert health.why
    assert ("Degraded", "limited") in driver.status()
    with pytest.raises(Corrupt, match="degraded"):
        driver.get("limited")
    driver.put("limited")
    path = driver.get("limited")
    assert driver.state("limited").health.state == "ok"
    assert (path / "kept").read_text() == "kept"
    (path / "new").write_text("works again")
    driver.put("limited")
    goroot.run("e2fsck", "-fn", root / "containers_quota/limited.ext4")


def test_what_a_repair_found_is_reported(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "directory").mkdir()
        (path / "directory" / "file").write_text("found again")
        number = (path / "directory" / "file").stat().st_ino
    image = root / "containers_quota/limited.ext4"
    assert driver.state("limited").recovered == ()
    goroot.run("debugfs", "-w", "-R", "unlink upper/directory/file", image)
    subprocess.run(["e2fsck", "-f", "-y", image], check=False, capture_output=True)
    with driver.mounted("limited") as path:
        assert os.listdir(path) == ["directory"]
        (found,) = driver.state("limited").recovered
        assert found.startswith("#")
        assert number


def test_an_unclean_image_is_checked_before_use(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "file").write_text("kept")
    image = root / "containers_quota/limited.ext4"
    goroot.run("debugfs", "-w", "-R", "ssv state 0", image)
    goroot.run("debugfs", "-w", "-R", "ssv free_blocks_count 7", image)
    with driver.mounted("limited") as path:
        assert (path / "file").read_text() == "kept"
        space = os.statvfs(path)
        assert space.f_bavail * space.f_frsize > 15 * MIB
    goroot.run("e2fsck", "-fn", image)


def test_an_image_beyond_repair_is_kept(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "directory").mkdir()
        (path / "directory" / "file").write_text("lost")
    image = root / "containers_quota/limited.ext4"
    goroot.run("debugfs", "-w", "-R", "clri upper", image)
    goroot.run("debugfs", "-w", "-R", "ssv state 0", image)
    before = image.read_bytes()
    for _ in range(2):
        with pytest.raises(Corrupt, match=r"limited\.ext4"):
            driver.get("limited")
    assert image.stat().st_size == len(before)
    assert not driver.state("limited").mounted
    driver.remove("limited")
    assert not image.exists()


def test_an_empty_image_file(driver: Driver, root: Path) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    image = root / "containers_quota/limited.ext4"
    os.truncate(image, 0)
    for use in (driver.get, driver.changes, driver.usage, driver.mounts):
        with pytest.raises(Corrupt):
            use("limited")
    assert attached(driver) == set()


@pytest.mark.parametrize(
    "break_it",
    [
        lambda meta: meta.unlink(),
        lambda meta: meta.write_text("{}"),
        lambda meta: meta.write_text('{"record": null}'),
        lambda meta: meta.write_text("{"),
        lambda meta: meta.write_text('{"record": {"limit": {"bytes": -1}, "limiter": "image"}}'),
        lambda meta: meta.write_text('{"record": {"limit": {"bytes": "all"}, "limiter": "image"}}'),
    ],
    ids=["missing", "empty", "unlimited", "cut", "negative", "text"],
)
def test_a_limit_that_is_not_known_is_no_layer(
    driver: Driver, root: Path, break_it: Callable[[Path], None]
) -> None:
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    driver.create("child", "limited")
    break_it(root / "meta" / "limited")
    for use in (driver.get, driver.limit, driver.mounts, driver.usage, driver.changes, driver.diff):
        with pytest.raises(Corrupt, match="limited"):
            use("limited")
    with pytest.raises(Corrupt, match="limited"):
        driver.get("child")
    assert scratch.mounts_below(root) == []
    driver.cleanup()
    driver.remove("child")
    driver.remove("limited")
    assert driver.ids() == ["base"]


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_resize_that_was_killed_is_finished(
    driver: Driver, root: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after the file system grew: the next use finishes it and knows what is used."""
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    with driver.mounted("limited") as path:
        (path / "file").write_bytes(os.urandom(3 * MIB))
        (path / "directory").mkdir()
        os.link(path / "file", path / "directory" / "link")
    used = driver.usage("limited")
    real = driver._limiter.resize

    class Killed(BaseException):
        pass

    def killed(*arguments: Any) -> Any:
        if step == "after":
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(driver._limiter, "resize", killed)
        with pytest.raises(Killed):
            driver.resize("limited", Limit(64 * MIB))
    again = Driver(root, driver._union)
    with again.mounted("limited") as path:
        assert again.limit("limited") == Limit(64 * MIB)
        space = os.statvfs(path)
        assert 60 * MIB <= space.f_bavail * space.f_frsize <= 62 * MIB
    assert again.usage("limited") == used
