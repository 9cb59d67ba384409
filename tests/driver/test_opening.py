"""Opening a root: what is made, what is refused, where it may lie, what it says of itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from layerlimit import Driver, Limit
from layerlimit.errors import Corrupt, Error, InvalidArgument, NotSupported, PermissionDenied
from layerlimit.limit import MIB
from layerlimit.linux.mount import unmount
from layerlimit.union import Aufs, Overlay
from tests import scratch
from tests.driver import goroot

pytestmark = pytest.mark.lane("root", "overlay", "loop")

LIMIT = Limit(16 * MIB)


def exercise(driver: Driver, *, limit: Limit | None) -> None:
    """A base, a child, an export, an import, a view; everything removed again."""
    driver.create("base", limit=limit)
    driver.create("child", "base", limit=limit)
    with driver.mounted("base") as path:
        (path / "below").write_text("x")
    with driver.mounted("child") as path:
        assert os.listdir(path) == ["below"]
        (path / "above").write_text("x")
    assert [str(change) for change in driver.changes("child")] == ["A /above"]
    with driver.diff("child") as stream:
        raw = stream.read()
    driver.create("copy", "base", limit=limit)
    assert driver.apply_diff("copy", io.BytesIO(raw)) == 1
    with driver.mounted("copy", read_only=True) as path:
        assert sorted(os.listdir(path)) == ["above", "below"]
    for id in ("copy", "child", "base"):
        driver.remove(id)
    assert scratch.leftovers(driver.root, patience=5) == []


# -- what is made ------------------------------------------------------------------------------------


def test_a_new_root(root: Path) -> None:
    driver = Driver(root / "made" / "on the way")
    assert driver.root.stat().st_mode & 0o7777 == 0o700
    assert json.loads((driver.root / "format").read_text()) == {"version": 1, "union": "overlay"}
    assert (driver.union, driver.limiter) == ("overlay", "image")


def test_opening_again_changes_nothing(root: Path) -> None:
    Driver(root).create("1", limit=LIMIT)
    before = goroot.picture(root)
    Driver(root)
    Driver(root, "overlay", "none")
    assert goroot.picture(root) == before


def test_on_ext4_layers_are_placed_apart(root: Path, tmp_path: Path) -> None:
    disk, inodes_per_group = tmp_path / "disk", 512
    with disk.open("wb") as image:
        image.truncate(32 * 128 * MIB)  # of 32 groups
    made = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^flex_bg", "-N", str(32 * inodes_per_group)]
    subprocess.run([*made, str(disk)], check=True)
    root.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(root)], check=True)
    try:
        with closing(Driver(root)) as driver:
            for id in "123":
                driver.create(id)
        numbers = [path.stat().st_ino for path in (root / "diff", *(root / "diff").iterdir())]
        assert len({(number - 1) // inodes_per_group for number in numbers}) == 4
    finally:
        unmount(root)


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("btrfs",), ("",), ("overlay", "quota"), ("overlay", "")])
def test_unknown_mechanisms(root: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument):
        Driver(root, *arguments)
    assert not root.exists()


@pytest.mark.parametrize("owner", [(-1, 0), (0, -1), (1 << 32, 0)])
def test_impossible_owners(root: Path, owner: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgument):
        Driver(root, owner=owner)


def test_the_form_of_another_union(root: Path) -> None:
    Driver(root, "overlay")
    before = goroot.picture(root)
    with pytest.raises(InvalidArgument, match="overlay") as caught:
        Driver(root, Aufs())
    assert caught.value.code == "root.union"
    assert goroot.picture(root) == before


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", Corrupt),
        ("{", Corrupt),
        ("[1]", Corrupt),
        ('{"version": "1", "union": "overlay"}', Corrupt),
        ('{"version": 1}', Corrupt),
        ('{"version": 2, "union": "overlay"}', NotSupported),
        ('{"version": 1, "union": "unionfs"}', InvalidArgument),
    ],
)
@pytest.mark.parametrize("union", ["auto", "overlay"])
def test_formats_that_are_not_ours(root: Path, text: str, kind: type[Error], union: str) -> None:
    Driver(root).create("1")
    (root / "format").write_text(text)
    before = goroot.picture(root)
    with pytest.raises(kind):
        Driver(root, union)
    assert goroot.picture(root) == before


def test_a_lost_format_is_not_made_up(root: Path) -> None:
    """Without it nobody knows whose form the layers have."""
    Driver(root).create("1")
    (root / "format").unlink()
    with pytest.raises(NotSupported):
        Driver(root, "overlay")
    assert not (root / "format").exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_no_directory(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Error):
        Driver(tmp_path / where)
    assert (tmp_path / "file").read_text() == "x"


def _as_user(number: int, work: Callable[[], None]) -> str:
    """Runs ``work`` in a child process of that user; what it raised, or ``""``."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(number)
            os.setuid(number)
            work()
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-2000:])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def test_without_privileges() -> None:
    home = Path(tempfile.mkdtemp())  # a user can get there, other than to tmp_path
    os.chown(home, 1000, 1000)

    def use(root: Path) -> None:
        driver = Driver(root)
        driver.create("base")
        driver.create("child", "base")
        driver.get("child")

    def work() -> None:
        for root in (home / "root", Path("/root/of-somebody-else")):
            with pytest.raises(PermissionDenied):
                use(root)

    assert _as_user(1000, work) == ""


# -- where it may lie --------------------------------------------------------------------------------

NAMES = [
    "with space",
    "co:lon,comma",
    "back\\slash",
    "new\nline",
    "ünïcode",
    "a=b;c'd\"e",
    "l" * 250,
    f"{'d' * 200}/{'e' * 200}",
]


@pytest.mark.guest
@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:16])
@pytest.mark.parametrize(
    "union",
    [
        pytest.param(Overlay(api="new"), id="new", marks=pytest.mark.lane("lowerdir_plus")),
        pytest.param(Overlay(api="mount2"), id="mount2", marks=pytest.mark.lane("mount2")),
    ],
)
@pytest.mark.parametrize("limit", [None, LIMIT], ids=["plain", "limited"])
def test_roots_of_any_name(ground: Path, name: str, union: Overlay, limit: Limit | None) -> None:
    exercise(Driver(ground / name, union), limit=limit)


def test_relative_and_linked_roots(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ground)
    exercise(Driver("here/root"), limit=LIMIT)
    (ground / "link").symlink_to("here")
    exercise(Driver("link/root"), limit=LIMIT)
    (ground / "linked").symlink_to("here/linked")
    with pytest.raises(Error, match="linked"):
        Driver("linked")  # to nothing
    (ground / "here/linked").mkdir()
    exercise(Driver("linked"), limit=LIMIT)
    driver = Driver("here/root")
    driver.create("1")
    monkeypatch.chdir("/")
    assert driver.get("1") == ground / "here/root/diff/1"
    driver.cleanup()


@contextmanager
def disk(directory: Path, kind: str) -> Iterator[Path]:
    image, point = directory / "image", directory / "point"
    point.mkdir()
    if kind == "tmpfs":
        goroot.run("mount", "-t", "tmpfs", "tmpfs", point)
    elif kind == "overlay":
        for name in ("lower", "upper", "work"):
            (directory / name).mkdir()
        options = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
        goroot.run("mount", "-t", "overlay", "overlay", point, "-o", options)
    else:
        with image.open("wb") as file:
            file.truncate(600 * MIB)
        goroot.run(f"mkfs.{kind}", image)
        goroot.run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        goroot.run("umount", point)


@pytest.mark.parametrize("kind", ["tmpfs", "xfs", "ext4"])
@pytest.mark.parametrize("limit", [None, LIMIT], ids=["plain", "limited"])
def test_roots_on_any_disk(tmp_path: Path, kind: str, limit: Limit | None) -> None:
    with disk(tmp_path, kind) as point:
        exercise(Driver(point / "root"), limit=limit)


def test_a_root_on_overlay(tmp_path: Path) -> None:
    """In a container: layers with a limit bring their own ext4, others cannot be written there."""
    with disk(tmp_path, "overlay") as point:
        driver = Driver(point / "root")
        exercise(driver, limit=LIMIT)
        driver.create("base")
        driver.create("child", "base")
        with pytest.raises(NotSupported, match="limit the layer"):
            driver.get("child")
        assert not driver.state("child").mounted
        driver.close()


# -- what it says of itself --------------------------------------------------------------------------


def test_status(root: Path) -> None:
    driver = Driver(root)
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    rows = driver.status()
    assert [name for name, _ in rows[:3]] == ["Root Dir", "Dirs", "Backing Filesystem"]
    assert dict(rows)["Dirs"] == "2"
    assert dict(rows)["Limiter"] == "image"
    assert dict(Driver(root, limiter="none").status())["Limiter"] == "none"


def test_state(root: Path) -> None:
    driver = Driver(root)
    driver.create("base")
    driver.create("limited", "base", limit=LIMIT)
    assert driver.state("base").health.state == "ok"
    assert driver.state("limited").health.state == "detached"
    driver.get("limited")
    assert driver.state("limited").health.state == "ok"
    driver.cleanup()


def test_a_driver_without_a_limiter_keeps_the_limits_that_are(root: Path) -> None:
    Driver(root).create("limited", limit=LIMIT)
    driver = Driver(root, limiter="none")
    with pytest.raises(NotSupported):
        driver.create("more", limit=LIMIT)
    with driver.mounted("limited") as path:
        assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize < LIMIT.bytes * 1.1
    driver.resize("limited", Limit(32 * MIB))
    assert driver.limit("limited") == Limit(32 * MIB)
