"""A limit is real or it is an error: whatever is done to an image, a mount or a record, no path escapes it.

Every fault is made with the tools that people have, to a layer that is *cold* (nothing mounted), *live*
(mounted, its path handed out, a file open in it) or *torn* (live, then all its mounts taken away by
``umount -l``). Then every door of the driver is tried: it must be a typed error, or lead to something that
says ENOSPC at the limit. What is written through paths handed out before must fail, or go into the image:
never to the host's disk.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerlimit import Corrupt, Driver, Error, Limit, NotSupported
from tests.driver.filling import fill
from tests.driver.ground import host_disk, picture_at_rest, remove_everything, run, stray_files
from tests.driver.strace import Victims
from tests.scratch import loops_below, mounts_below

pytestmark = pytest.mark.lane("root", "overlay", "loop")

MIB = 1 << 20
LIMIT = 8 * MIB
SLACK = 6 * MIB  # what the image of a full layer takes on the host beside its data: tables and the journal
# At the limit, and from a file system whose image was destroyed below it.
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ESHUTDOWN)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with host_disk(tmp_path_factory.mktemp("closed")) as path:
        yield path


@pytest.fixture
def driver(disk: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Limited and unlimited layers over limited ones; when the test is over all of it can be removed."""
    made = Driver(disk / f"root-{request.node.name[:100]}", "overlay")
    made.create("base")
    made.create("root", limit=Limit(LIMIT))
    made.create("limited", "base", limit=Limit(LIMIT))
    made.create("other", "base", limit=Limit(LIMIT))
    made.create("heir", "limited", limit=Limit(LIMIT))
    made.create("child", "limited")
    with made.mounted("limited") as path:
        (path / "mark").write_text("limited")
    with made.mounted("other") as path:
        (path / "mark").write_text("other")
    yield made
    for point in mounts_below(made.root):
        if point.name.startswith("foreign"):
            run("umount", "-l", point)
    remove_everything(Driver(made.root))
    left = {line for line in picture_at_rest(made.root) if line.startswith(("attached", "mounted"))}
    assert not left
    assert not os.listdir(made.root / "trash")


# (the layer that is used, the layer whose image is hurt)
WHOM = [("root", "root"), ("limited", "limited"), ("heir", "heir"), ("heir", "limited"), ("child", "limited")]
whom = pytest.mark.parametrize(("id", "hurt"), WHOM, ids=lambda word: word)


def image_of(driver: Driver, id: str) -> Path:
    return driver.root / "containers_quota" / f"{id}.ext4"


class Life:
    """A layer in use: the paths that were handed out, and a file that stays open in it."""

    def __init__(self, driver: Driver, id: str) -> None:
        self.driver = driver
        self.id = id
        self.path = driver.get(id)
        self.file = (self.path / "open").open("wb", buffering=0)
        self.file.write(b"begun")

    def end(self) -> None:
        self.file.close()

    def tear(self, order: tuple[str, ...]) -> None:
        """``umount -l`` of what is mounted for the layer and its ancestors, in an order of mnt, diff, img."""
        for kind in order:
            for point in mounts_below(self.driver.root / kind):
                run("umount", "-l", point)

    def write_by_file(self) -> None:
        """Write twice the limit through the open file; only ever an error, or bytes in the image."""
        with contextlib.suppress(OSError):
            for _ in range(2 * LIMIT // MIB):
                self.file.write(bytes(MIB))
            os.fsync(self.file.fileno())


@pytest.fixture
def alive(driver: Driver) -> Iterator[Callable[[str], Life]]:
    lives: list[Life] = []

    def begin(id: str) -> Life:
        lives.append(Life(driver, id))
        return lives[-1]

    yield begin
    for life in lives:
        life.end()


def used(directory: Path) -> int:
    run("sync", "-f", directory)
    space = os.statvfs(directory)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def tar_of(size: int) -> io.BytesIO:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        entry = tarfile.TarInfo("big")
        entry.size = size
        tar.addfile(entry, io.BytesIO(bytes(size)))
    raw.seek(0)
    return raw


def doors(root: Path, id: str) -> dict[str, Callable[[], Path | None]]:
    """Every way to use a layer; those that return a path to write to return it."""
    driver = Driver(root)

    def mounted() -> None:
        with driver.mounted(id) as path:
            holds(path, driver.limit(id))

    def mounts() -> None:
        for mount in driver.mounts(id):
            for option in mount.options:
                if option.startswith("upperdir="):
                    holds(Path(option.partition("=")[2]), driver.limit(id))

    def view() -> None:
        with pytest.raises(OSError):
            (driver.get(id, read_only=True) / "written").write_text("x")
        driver.put(id, read_only=True)

    def apply() -> None:
        driver.apply_diff(id, tar_of(2 * LIMIT))

    def changes() -> None:
        driver.changes(id)

    return {
        "get": lambda: driver.get(id),
        "view": view,
        "mounted": mounted,
        "mounts": mounts,
        "apply": apply,
        "resize": lambda: driver.resize(id, Limit(2 * LIMIT)),
        "diff": lambda: driver.diff(id).close(),
        "changes": changes,
    }


def holds(path: Path, limit: Limit | None) -> None:
    """What is at ``path`` says ENOSPC at the limit of the layer."""
    if limit is None:
        return
    target = path / "filling"
    written, error = fill(target, 3 * LIMIT)
    with contextlib.suppress(OSError):
        target.unlink()
    assert error in REFUSALS, f"{path}: {written} bytes written, errno {error}"
    assert written <= limit.bytes * 1.02


def try_doors(driver: Driver, id: str, *, shut: bool, skip: tuple[str, ...] = ()) -> None:
    """Try every door; with ``shut`` each must be an error."""
    for name, door in doors(driver.root, id).items():
        if name in skip:
            continue
        try:
            path = door()
        except Error:
            continue
        assert not (shut and name not in ("diff", "changes")), f"{name} succeeded"
        if path is not None:
            holds(path, driver.limit(id))


def try_paths(driver: Driver, id: str, before: int, *, images: int = 1) -> None:
    """Write twice the limit wherever the layer was ever seen; nothing of it may lie on the host's disk.

    At most so many ``images`` have been filled since ``before`` was measured.
    """
    seen = [driver.root / kind / id for kind in ("mnt", "diff", "img", "work")]
    seen += [driver.root / "img" / id / "upper"]
    if driver_knows_limit(driver, id):
        for place in seen:
            with contextlib.suppress(OSError):
                fill(place / "escaped", 2 * LIMIT)
        assert used(driver.root.parent) - before <= images * (LIMIT + SLACK)
        for place in seen:
            with contextlib.suppress(OSError):
                (place / "escaped").unlink()
    assert stray_files(driver.root) == []


def driver_knows_limit(driver: Driver, id: str) -> bool:
    return id != "child"


# -- images ----------------------------------------------------------------------------------------


def deleted(driver: Driver, id: str) -> None:
    run("rm", image_of(driver, id))


def truncated(driver: Driver, id: str) -> None:
    run("truncate", "-s", str(LIMIT // 2), image_of(driver, id))


def emptied(driver: Driver, id: str) -> None:
    run("truncate", "-s", "0", image_of(driver, id))


def copied_over(driver: Driver, id: str) -> None:
    """The other layer's image, in this one's file."""
    run("cp", image_of(driver, "other"), image_of(driver, id))


def moved_over(driver: Driver, id: str) -> None:
    """A copy of the other layer's image, under this one's name."""
    run("cp", image_of(driver, "other"), driver.root / "copy")
    run("mv", driver.root / "copy", image_of(driver, id))


def zeroed_superblock(driver: Driver, id: str) -> None:
    run("dd", "if=/dev/zero", f"of={image_of(driver, id)}", "bs=1024", "seek=1", "count=1", "conv=notrunc")


def zeroed(driver: Driver, id: str) -> None:
    size = image_of(driver, id).stat().st_size
    run(
        "dd", "if=/dev/zero", f"of={image_of(driver, id)}", "bs=4096", f"count={size // 4096}", "conv=notrunc"
    )


def formatted_anew(driver: Driver, id: str) -> None:
    run("mkfs.ext4", "-q", "-FF", image_of(driver, id))


def a_directory(driver: Driver, id: str) -> None:
    run("rm", image_of(driver, id))
    image_of(driver, id).mkdir()


def a_link(driver: Driver, id: str) -> None:
    run("ln", "-sf", image_of(driver, "other"), image_of(driver, id))


def a_pipe(driver: Driver, id: str) -> None:
    run("rm", image_of(driver, id))
    run("mkfifo", image_of(driver, id))


IMAGE_FAULTS = [
    deleted, truncated, emptied, copied_over, moved_over, zeroed_superblock, zeroed, formatted_anew,
    a_directory, a_link, a_pipe,
]  # fmt: skip
image_fault = pytest.mark.parametrize("fault", IMAGE_FAULTS, ids=lambda function: function.__name__)


@whom
@image_fault
def test_a_layer_whose_image_was_hurt_is_an_error(
    driver: Driver, id: str, hurt: str, fault: Callable[[Driver, str], None]
) -> None:
    before = used(driver.root.parent)
    fault(driver, hurt)
    with pytest.raises(Corrupt):
        Driver(driver.root).get(id)
    skip = ("resize", "apply") if id == "child" else ("resize",) if id != hurt else ()
    try_doors(driver, id, shut=True, skip=skip)
    try_paths(driver, id, before, images=len({id, hurt}))


@whom
@image_fault
def test_a_live_layer_whose_image_was_hurt_is_an_error(
    driver: Driver, alive: Callable[[str], Life], id: str, hurt: str, fault: Callable[[Driver, str], None]
) -> None:
    before = used(driver.root.parent)
    life = alive(id)
    fault(driver, hurt)
    # The live file system writes its superblock anew: what was done to the content need not show any more.
    in_place = fault in (copied_over, zeroed_superblock, zeroed, formatted_anew)
    if not in_place:
        with pytest.raises(Corrupt):
            Driver(driver.root).get(id)
    life.write_by_file()
    try_doors(driver, id, shut=not in_place, skip=("resize", "apply", "mounts"))
    try_paths(driver, id, before, images=len({id, hurt}))


@whom
@pytest.mark.parametrize("fault", [deleted, moved_over, zeroed_superblock, emptied], ids=lambda f: f.__name__)
def test_a_torn_layer_whose_image_was_hurt_is_an_error(
    driver: Driver, alive: Callable[[str], Life], id: str, hurt: str, fault: Callable[[Driver, str], None]
) -> None:
    before = used(driver.root.parent)
    life = alive(id)
    life.tear(("mnt", "diff", "img"))
    fault(driver, hurt)
    with pytest.raises(Error):
        Driver(driver.root).get(id)
    life.write_by_file()
    try_paths(driver, id, before)


def clear_root_inode(image: Path) -> None:
    run("debugfs", "-w", "-R", "clri <2>", image)


def clear_upper_inode(image: Path) -> None:
    listing = run("debugfs", "-R", "stat upper", image).stdout
    run("debugfs", "-w", "-R", f"clri <{listing.split()[1]}>", image)


def scribble_descriptors(image: Path) -> None:
    run("dd", "if=/dev/urandom", f"of={image}", "bs=4096", "seek=1", "count=1", "conv=notrunc")


def break_journal(image: Path) -> None:
    run("debugfs", "-w", "-R", "clri <8>", image)


DAMAGES = [clear_root_inode, clear_upper_inode, scribble_descriptors, break_journal]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("unclean", [False, True], ids=["clean", "unclean"])
@whom
def test_a_damaged_image_is_repaired_or_is_an_error_and_is_kept(
    driver: Driver, id: str, hurt: str, damage: Callable[[Path], None], unclean: bool
) -> None:
    before = used(driver.root.parent)
    image = image_of(driver, hurt)
    damage(image)
    if unclean:  # as a power cut leaves it: then e2fsck -p looks at it first, and refuses
        run("debugfs", "-w", "-R", "ssv state 0", image)
    inode = image.stat().st_ino
    try:
        path = Driver(driver.root).get(id)
    except Corrupt:
        pass
    else:
        assert unclean, "mounted without a repair"
        holds(path, driver.limit(id))
    assert image.stat().st_ino == inode
    try_paths(driver, id, before)


# -- loop devices and mounts -----------------------------------------------------------------------


@whom
def test_a_detached_loop_device_changes_nothing(
    driver: Driver, alive: Callable[[str], Life], id: str, hurt: str
) -> None:
    before = used(driver.root.parent)
    life = alive(id)
    for device in loops_below(driver.root):
        run("losetup", "--detach", device)  # deferred by the kernel until the last unmount
    life.write_by_file()
    assert Driver(driver.root).get(id) == life.path
    holds(life.path, driver.limit(id))
    try_paths(driver, id, before)


@whom
@pytest.mark.parametrize("order", list(itertools.permutations(("mnt", "diff", "img"))), ids="-".join)
def test_unmounted_behind_its_back_with_a_file_open(
    driver: Driver, alive: Callable[[str], Life], id: str, hurt: str, order: tuple[str, ...]
) -> None:
    before = used(driver.root.parent)
    life = alive(id)
    for part in range(1, 4):
        life.tear(order[:part])
        if order[0] != "img" and id != "root":
            assert not (life.path / "open").exists() or order[0] != "mnt"
        try_paths(driver, id, before)
        try:
            path = Driver(driver.root).get(id)
        except Error:
            continue
        assert (path / "open").exists(), "another file system than that of the open file"
        holds(path, driver.limit(id))
    life.tear(order)
    life.write_by_file()
    assert used(driver.root.parent) - before <= (2 * LIMIT if id == "child" else LIMIT) + SLACK
    try_paths(driver, id, before)
    for device in loops_below(driver.root):
        run("losetup", "--detach", device, check=False)
    with contextlib.suppress(Error):
        path = Driver(driver.root).get(id)
        assert (path / "open").exists()
        holds(path, driver.limit(id))


def test_the_same_file_system_comes_back_while_somebody_still_writes(
    driver: Driver, alive: Callable[[str], Life]
) -> None:
    life = alive("limited")
    life.tear(("mnt", "diff", "img"))
    again = Driver(driver.root).get("limited")
    life.file.write(b", and went on")
    assert (again / "open").read_bytes() == b"begun, and went on"
    assert len(loops_below(driver.root)) == 1


@pytest.mark.parametrize("id", ["limited", "heir", "child", "root"])
@pytest.mark.parametrize("kind", ["mnt", "diff", "img"])
def test_something_else_mounted_in_its_place_is_not_taken_for_the_layer(
    driver: Driver, id: str, kind: str, disk: Path
) -> None:
    foreign = disk / f"foreign-{id}-{kind}"
    foreign.mkdir()
    place = driver.root / kind / id
    if (kind == "img" and id == "child") or (kind == "mnt" and id == "root"):
        place = driver.root / "img" / "limited"
        id = "limited"
    run("mount", "--bind", foreign, place)
    try:
        path = Driver(driver.root).get(id)
    except Error:
        pass
    else:
        (path / "written").write_text("x")
        assert not (foreign / "written").exists()
        holds(path, driver.limit(id))
    assert not os.listdir(foreign)
    for point in mounts_below(place):
        run("umount", "-l", point)


def test_another_layers_mounts_are_not_taken_for_the_layer(driver: Driver) -> None:
    other = driver.get("other")
    run("mount", "--bind", driver.root / "img/other", driver.root / "img/limited")
    with pytest.raises(Corrupt, match="another file"):
        Driver(driver.root).get("limited")
    run("umount", driver.root / "img/limited", check=False)
    run("mount", "--bind", other, driver.root / "mnt/limited")
    try:
        path = Driver(driver.root).get("limited")
    except Error:
        pass
    else:
        assert (path / "mark").read_text() == "limited"
    for point in mounts_below(driver.root / "mnt/limited"):
        run("umount", "-l", point)


@pytest.mark.parametrize("id", ["limited", "heir", "child", "root"])
@pytest.mark.parametrize("kind", ["mnt", "img", "diff"])
@pytest.mark.parametrize("what", ["file", "link", "nothing"])
def test_no_directory_to_mount_at(driver: Driver, id: str, kind: str, what: str, disk: Path) -> None:
    elsewhere = disk / f"elsewhere-{id}-{kind}-{what}"
    elsewhere.mkdir()
    place = driver.root / kind / id
    run("chattr", "-i", place, check=False)
    run("rm", "-rf", place)
    if what == "file":
        place.write_text("")
    elif what == "link":
        place.symlink_to(elsewhere)
    try:
        path = Driver(driver.root).get(id)
    except Error:
        assert mounts_below(driver.root) == []
    else:
        # Unused; or the directory of an unlimited layer, which may have been migrated to another disk.
        unused = (id, kind) in (("child", "img"), ("root", "mnt"), ("child", "diff"))
        assert what == "nothing" or unused
        holds(path, driver.limit(id))
    assert not os.listdir(elsewhere)


@pytest.mark.lane("strace")
@pytest.mark.parametrize("error", ["EPERM", "ENODEV", "ENOMEM", "EBUSY"])
@pytest.mark.parametrize("id", ["root", "limited", "heir", "child"])
def test_mounts_that_the_kernel_refuses(driver: Driver, tmp_path: Path, id: str, error: str) -> None:
    before = picture_at_rest(driver.root)
    with Victims(tmp_path) as victims:
        steps = victims.run(driver.root, "get", id).trace.failing()
        driver.cleanup()
        calls = ("fsopen", "fsconfig", "fsmount", "move_mount", "open_tree", "mount", "ioctl")
        steps = [step for step in steps if step.call in calls and "0x40086602" not in step.text]
        assert len(steps) >= 5
        for step in steps:
            outcome = victims.fail_at(step, error, driver.root, "get", id)
            assert outcome.typed, outcome.message
            if outcome.result == "ok":  # it was tried again another way
                assert error == "EBUSY" or not outcome.hit(step)
                holds(driver.get(id), driver.limit(id))
                driver.cleanup()
            assert picture_at_rest(driver.root) == before, f"{step}: {outcome.result}"


# -- records ---------------------------------------------------------------------------------------

RECORDS = {
    "missing": None,
    "empty": "",
    "garbage": "\x00\xff{{",
    "no-record": "{}",
    "null": '{"record": null}',
    "negative": '{"record": {"limit": {"bytes": -8388608}, "limiter": "image"}}',
    "zero": '{"record": {"limit": {"bytes": 0}, "limiter": "image"}}',
    "huge": '{"record": {"limit": {"bytes": 99999999999999999999999}, "limiter": "image"}}',
    "fraction": '{"record": {"limit": {"bytes": 1.5}, "limiter": "image"}}',
    "text": '{"record": {"limit": {"bytes": "8M"}, "limiter": "image"}}',
    "unknown": '{"record": {"limit": null, "limiter": "image"}}',
    "no-limit": '{"record": {"limiter": "image"}}',
    "other-limiter": '{"record": {"limit": {"bytes": 8388608}, "limiter": "fog", "uuid": "%s"}}',
    "no-uuid": '{"record": {"limit": {"bytes": 8388608}, "limiter": "image"}}',
}


@whom
@pytest.mark.parametrize("record", list(RECORDS))
def test_a_layer_whose_limit_is_not_known_is_an_error(
    driver: Driver, id: str, hurt: str, record: str
) -> None:
    before = used(driver.root.parent)
    meta = driver.root / "meta" / hurt
    text = RECORDS[record]
    meta.unlink()
    if text is not None:
        meta.write_text(text)
    with pytest.raises(Corrupt):
        Driver(driver.root).get(id)
    skip = ("resize", "apply") if id == "child" else ("resize",) if id != hurt else ()
    try_doors(driver, id, shut=True, skip=skip)
    try_paths(driver, id, before)
    assert Driver(driver.root).exists(id)


@pytest.mark.parametrize("record", list(RECORDS))
def test_a_live_layer_whose_record_was_lost_can_be_given_up(
    driver: Driver, alive: Callable[[str], Life], record: str
) -> None:
    life = alive("limited")
    meta = driver.root / "meta/limited"
    text = RECORDS[record]
    meta.unlink()
    if text is not None:
        meta.write_text(text)
    with pytest.raises(Corrupt):
        Driver(driver.root).get("limited")
    life.end()
    Driver(driver.root).cleanup()
    assert mounts_below(driver.root) == []


@pytest.mark.parametrize("record", ["missing", "empty", "garbage", "no-record", "negative", "unknown"])
@pytest.mark.parametrize("id", ["root", "limited"])
def test_record_and_image_gone_is_not_unlimited(driver: Driver, id: str, record: str) -> None:
    deleted(driver, id)
    text = RECORDS[record]
    (driver.root / "meta" / id).unlink()
    if text is not None:
        (driver.root / "meta" / id).write_text(text)
    with pytest.raises(Corrupt):
        Driver(driver.root).get(id)
    assert stray_files(driver.root) == []


def test_a_kernel_without_the_union_serves_nothing(driver: Driver, disk: Path) -> None:
    if "aufs" in Path("/proc/filesystems").read_text().split():
        return  # then a root of overlay is refused for its form, which test_defects holds
    with pytest.raises(NotSupported):
        Driver(disk / "without", "aufs")
    assert not (disk / "without").exists()
    with pytest.raises(Error):
        Driver(driver.root, "aufs")


def test_a_driver_without_limiter_still_holds_the_limits_there_are(driver: Driver) -> None:
    without = Driver(driver.root, limiter="none")
    holds(without.get("limited"), Limit(LIMIT))
    with pytest.raises(NotSupported):
        without.create("new", "base", limit=Limit(LIMIT))
    assert not without.exists("new")
