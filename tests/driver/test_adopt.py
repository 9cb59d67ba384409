"""Roots that the Go driver left: refused by overlay until they are converted, and then whole."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerlimit import Adoption, Driver, aufslimit
from layerlimit.driver import adopt
from layerlimit.errors import Busy, Corrupt, Error, InvalidArgument, NotSupported
from layerlimit.limit import MIB, Limit
from layerlimit.union import Aufs, Overlay, Union
from tests.driver import goroot
from tests.driver.filling import fill
from tests.driver.goroot import BASE, BIG, CHILD, CONTAINER, INIT, LIMITED, SHIFT

pytestmark = [pytest.mark.lane("root", "overlay", "loop")]


@pytest.fixture
def fstab(root: Path) -> Path:
    return goroot.make(root)


@pytest.fixture
def adopted(root: Path, fstab: Path) -> Iterator[Driver]:
    adopt(root, fstab=fstab, owner_shift=SHIFT)
    driver = Driver(root)
    yield driver
    driver.cleanup()


def tree(path: Path) -> set[str]:
    return {str(name.relative_to(path)) for name in path.rglob("*")}


WHOLE = {  # what CONTAINER shows
    *("bin", "bin/su", "bin/wall", "bin/ping", "bin/traced", "bin/sh", "bin/bash", "bin/link", "bin/sudo"),
    *("etc", "etc/changed", "etc/hostname", "dev", "dev/console", "home", "home/far", "null"),
    *("opaque", "opaque/new", "opaque/deep", "opaque/deep/x", "upper", "upper/file", "work", "work/file"),
}


def has_aufs() -> bool:
    return "aufs" in Path("/proc/filesystems").read_text().split()


# -- before ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("union", ["overlay", Overlay(api="new"), Overlay(api="mount2")], ids=str)
def test_overlay_refuses_and_touches_nothing(root: Path, fstab: Path, union: str | Union) -> None:
    goroot.leave_leftovers(root)
    before = goroot.picture(root)
    with pytest.raises(NotSupported, match=r"Go driver.*layerlimit migrate"):
        Driver(root, union)
    assert goroot.picture(root) == before


def test_the_face_refuses_it_on_overlay_too(root: Path, fstab: Path) -> None:
    before = goroot.picture(root)
    with pytest.raises(NotSupported, match="layerlimit migrate"):
        aufslimit.init(root, union="overlay")
    assert goroot.picture(root) == before


def test_auto_never_takes_overlay_for_it(root: Path, fstab: Path) -> None:
    before = goroot.picture(root)
    if has_aufs():
        driver = Driver(root)
        assert driver.union == "aufs"
        driver.cleanup()
        return
    for union in ("auto", "aufs"):
        with pytest.raises(NotSupported):
            Driver(root, union)
    with pytest.raises(NotSupported, match="layerlimit migrate"):
        Driver(root)
    assert goroot.picture(root) == before


def test_dry_run_reports_and_touches_nothing(root: Path, fstab: Path) -> None:
    goroot.leave_leftovers(root)
    before = goroot.picture(root)
    report = adopt(root, dry_run=True, fstab=fstab, owner_shift=SHIFT)
    assert goroot.picture(root) == before
    assert report == Adoption(
        layers=tuple(sorted((*goroot.CHAINS, "ghost"))),
        limited=LIMITED,
        markers=sum(goroot.MARKERS.values()),
        fstab=tuple(line for line in fstab.read_text().splitlines() if "containers_quota" in line),
    )
    assert len(report.fstab) == len(goroot.QUOTAS)


def test_only_to_overlay_and_only_such_roots(root: Path, fstab: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        adopt(root, union="aufs", fstab=fstab)
    with pytest.raises(InvalidArgument, match="shift"):
        adopt(root, owner_shift=1000, fstab=fstab)
    with pytest.raises(InvalidArgument, match="no layers"):
        adopt(tmp_path, fstab=fstab)


# -- after -------------------------------------------------------------------------------------------


def test_what_a_container_shows(adopted: Driver, root: Path) -> None:
    assert adopted.ids() == sorted(goroot.CHAINS)
    assert adopted.union == "overlay"
    for id, chain in goroot.CHAINS.items():
        assert adopted.parent(id) == (chain[0] if chain else "")
    path = adopted.get(CONTAINER)
    assert path == root / "mnt" / CONTAINER
    assert tree(path) == WHOLE
    assert (path / "etc/changed").read_text() == "changed of child"
    assert (path / "bin/bash").samefile(path / "bin/sh")
    assert (path / "null").stat().st_rdev == os.makedev(1, 3)
    big = adopted.get(BIG)
    assert "bin" not in os.listdir(big)
    assert (big / "data").read_text() == "x" * 100_000


def test_owners_modes_and_capabilities(adopted: Driver) -> None:
    path = adopted.get(CONTAINER)

    def look(name: str) -> tuple[int, int, int]:
        status = (path / name).lstat()
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)

    assert look(".") == (0, 0, 0o755)
    assert look("bin") == (0, 0, 0o755)
    assert look("bin/su") == (0, 0, 0o4755)
    assert look("bin/sudo") == (0, 0, 0o4755)
    assert look("bin/wall") == (5, 5, 0o2755)
    assert look("bin/link")[:2] == (7, 7)
    assert look("home/far")[:2] == (SHIFT + 70000, SHIFT + 70000)
    assert look("null") == (0, 0, 0o666)
    for name in ("bin/ping", "bin/traced"):
        assert os.getxattr(path / name, "security.capability") == goroot.capability()
    assert "trusted.layerlimit.kept" not in os.listxattr(path / "bin/su")
    for name in ("bin", "etc", "opaque", "opaque/deep"):
        assert (path / name).stat().st_mtime == goroot.EPOCH


def test_owners_stay_unless_asked(root: Path, fstab: Path) -> None:
    adopt(root, fstab=fstab)
    driver = Driver(root)
    with driver.mounted(CONTAINER) as path:
        for name, mode in (("bin/su", 0o4755), ("bin/sudo", 0o4755), ("bin", 0o755)):
            status = (path / name).stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (SHIFT, mode)
        raw = os.getxattr(path / "bin/traced", "security.capability")
        assert raw == goroot.capability(SHIFT)
    driver.cleanup()


@pytest.mark.parametrize("id", LIMITED)
def test_limits_are_in_force(adopted: Driver, root: Path, id: str) -> None:
    limit = adopted.limit(id)
    assert limit is not None
    assert limit.bytes == goroot.QUOTAS[id] * MIB
    image = root / "containers_quota" / f"{id}.ext4"
    size = image.stat().st_size
    path = adopted.get(id)
    written, error = fill(path / "fill", 2 * size)
    assert error == errno.ENOSPC
    assert size * 0.8 < written < size
    assert image.stat().st_size == size
    assert adopted.usage(id).bytes > size * 0.8
    (path / "fill").unlink()
    (path / "again").write_text("room")


def test_an_adopted_image_keeps_its_size(adopted: Driver) -> None:
    with pytest.raises(NotSupported, match="keeps its size"):
        adopted.resize(CONTAINER, Limit(128 * MIB))


def test_changes_and_diffs(adopted: Driver) -> None:
    assert [str(change) for change in adopted.changes(CHILD)] == [
        "C /etc",
        "C /etc/changed",
        "D /etc/gone",
        "C /home",
        "D /home/user",
        "C /opaque",
        "D /opaque/below",
        "A /opaque/new",
        "D /opaque/old",
    ]
    names = {}
    for id in goroot.CHAINS:
        with adopted.diff(id) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            names[id] = set(tar.getnames())
    assert {"etc/.wh.gone", "home/.wh.user", "opaque/.wh..wh..opq"} <= names[CHILD]
    assert {"etc/.wh.kept", "upper/file", "work/file"} <= names[CONTAINER]
    assert ".wh.bin" in names[BIG]
    for found in names.values():
        assert not [name for name in found if name.startswith((".wh..wh.", "lost+found"))]


def test_new_layers_over_adopted_ones(adopted: Driver) -> None:
    adopted.create("new", CONTAINER, limit=Limit(16 * MIB))
    path = adopted.get("new")
    assert tree(path) == WHOLE
    (path / "upper" / "file").unlink()
    assert [str(change) for change in adopted.changes("new")] == ["C /upper", "D /upper/file"]
    with pytest.raises(Busy):
        adopted.remove(CONTAINER)


def test_everything_can_be_removed(adopted: Driver, root: Path) -> None:
    for id in (CONTAINER, INIT, BIG, CHILD, BASE):
        adopted.remove(id)
    assert adopted.ids() == []
    for name in ("mnt", "diff", "layers", "containers_quota", "trash"):
        assert os.listdir(root / name) == []


def test_fstab_is_printed_and_not_edited(root: Path, fstab: Path) -> None:
    before = fstab.read_bytes()
    report = adopt(root, fstab=fstab)
    assert fstab.read_bytes() == before
    assert all(line.startswith(f"{root}/containers_quota/") for line in report.fstab)
    assert len(report.fstab) == 2


def test_a_line_of_fstab_that_stays_does_no_harm(adopted: Driver, root: Path) -> None:
    """At boot it mounts the image at diff/<id>, without a flock; one image must not get two devices."""
    image = root / "containers_quota" / f"{CONTAINER}.ext4"
    goroot.run("mount", "-o", "loop,rw", image, root / "diff" / CONTAINER)
    path = adopted.get(CONTAINER)
    assert tree(path) == WHOLE
    devices = subprocess.run(["losetup", "-j", image], check=True, capture_output=True, text=True).stdout
    assert len(devices.splitlines()) == 1
    (path / "written").write_text("by the driver")
    adopted.put(CONTAINER)
    assert (adopted.get(CONTAINER) / "written").read_text() == "by the driver"


def test_leftovers(root: Path, fstab: Path) -> None:
    goroot.leave_leftovers(root)
    adopt(root, fstab=fstab)
    driver = Driver(root)
    for name in ("mnt", "diff"):
        assert not (root / name / "dead-removing").exists()
    assert (root / "containers_quota" / "orphan.ext4").exists()
    with pytest.raises(Corrupt, match="ghost"):
        driver.get("ghost")
    driver.remove("ghost")
    driver.create("orphan", limit=Limit(16 * MIB))
    assert driver.limit("orphan") == Limit(16 * MIB)
    (kept,) = (root / "lost").iterdir()
    assert kept.stat().st_size == 32 * MIB
    driver.cleanup()


def test_what_was_written_past_a_limit_is_kept_aside(root: Path, fstab: Path) -> None:
    """The Go driver served the bare directory after a reboot (defect 1): its files are not the layer's."""
    (root / "diff" / CONTAINER / "past").write_text("the limit")
    dry = adopt(root, fstab=fstab, dry_run=True)
    assert dry.strays == (str(root / "diff" / CONTAINER),)
    report = adopt(root, fstab=fstab)
    (kept,) = map(Path, report.strays)
    assert kept.parent == root / "lost"
    assert (kept / "past").read_text() == "the limit"
    driver = Driver(root)
    assert tree(driver.get(CONTAINER)) == WHOLE
    driver.cleanup()


# -- what stands in the way --------------------------------------------------------------------------


def test_a_mounted_root_is_busy(root: Path, fstab: Path) -> None:
    with goroot.mounted(root, CONTAINER):
        for dry_run in (True, False):
            with pytest.raises(Busy, match="mounted"):
                adopt(root, fstab=fstab, dry_run=dry_run)
    adopt(root, fstab=fstab)


def test_an_image_attached_elsewhere_is_busy(root: Path, fstab: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    goroot.run("mount", "-o", "loop", root / "containers_quota" / f"{BIG}.ext4", elsewhere)
    try:
        with pytest.raises(Busy, match="attached"):
            adopt(root, fstab=fstab)
        with pytest.raises(NotSupported):
            Driver(root, "overlay")
    finally:
        goroot.run("umount", elsewhere)
    adopt(root, fstab=fstab)


def test_a_damaged_image_stops_it_and_is_kept(root: Path, fstab: Path) -> None:
    image = root / "containers_quota" / f"{BIG}.ext4"
    good = image.with_suffix(".good")
    shutil.copyfile(image, good)
    with image.open("r+b") as file:
        file.write(os.urandom(64 * 1024))
    damaged = image.read_bytes()
    with pytest.raises(Corrupt, match=BIG):
        adopt(root, fstab=fstab)
    assert image.read_bytes() == damaged
    for union in ("overlay", Aufs()):  # half converted: nobody's, not even AUFS's
        with pytest.raises(NotSupported):
            Driver(root, union)
    os.replace(good, image)
    adopt(root, fstab=fstab, owner_shift=0)
    driver = Driver(root)
    assert (driver.get(BIG) / "data").exists()
    driver.cleanup()


def test_an_unclean_image_is_repaired_first(root: Path, fstab: Path) -> None:
    image = root / "containers_quota" / f"{CONTAINER}.ext4"
    goroot.run("debugfs", "-w", "-R", "ssv state 0", image)
    adopt(root, fstab=fstab)
    driver = Driver(root)
    assert tree(driver.get(CONTAINER)) == WHOLE
    driver.cleanup()


# -- interrupted -------------------------------------------------------------------------------------

STEPS = ("rename", "unlink", "mknod", "chown", "chmod", "mkdir", "utime")


class _Interrupted(BaseException):
    """Not an Exception: nobody may catch it."""


def _observe(driver: Driver) -> dict[str, object]:
    """What can be seen of all layers."""
    seen: dict[str, object] = {}
    for id in driver.ids():
        with driver.mounted(id) as path:
            for name in sorted(tree(path)):
                status = (path / name).lstat()
                attributes = [
                    (key, os.getxattr(path / name, key, follow_symlinks=False))
                    for key in os.listxattr(path / name, follow_symlinks=False)
                    if not key.startswith("trusted.overlay.")
                ]
                seen[f"{id}/{name}"] = (status.st_mode, status.st_uid, status.st_gid, attributes)
        seen[id] = (driver.limit(id), [str(change) for change in driver.changes(id)])
    driver.cleanup()
    return seen


@pytest.mark.parametrize("call", STEPS)
def test_interrupted_at_any_call_and_run_again(
    tmp_path: Path, root: Path, fstab: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 3rd call of each kind: an interruption before it leaves a root that another run finishes."""
    saved = tmp_path / "saved"
    goroot.run("cp", "-a", "--sparse=always", root, saved)
    adopt(root, fstab=fstab, owner_shift=SHIFT)
    wanted = _observe(Driver(root))
    real: Callable[..., object] = getattr(os, call)
    for at in range(0, 10_000, 3):
        goroot.delete(root)
        goroot.run("cp", "-a", "--sparse=always", saved, root)
        calls = 0

        def interrupted(*arguments: object, at: int = at, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > at:
                raise _Interrupted
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, interrupted)
            try:
                adopt(root, fstab=fstab, owner_shift=SHIFT)
            except _Interrupted:
                pass
            else:
                assert at > 0
                return
        if not (root / "format").exists():
            with pytest.raises(NotSupported):
                Driver(root, "overlay")
            adopt(root, fstab=fstab, owner_shift=SHIFT)
        assert _observe(Driver(root)) == wanted, f"interrupted at {call} number {at}"
        assert not (root / "adopting").exists()


# -- on AUFS -----------------------------------------------------------------------------------------


@pytest.mark.lane("aufs")
def test_aufs_opens_it_as_it_is(root: Path, fstab: Path) -> None:
    goroot.leave_leftovers(root)
    before = {name: facts for name, facts in goroot.picture(root).items() if _is_content(name)}
    driver = Driver(root)
    assert driver.union == "aufs"
    path = driver.get(CONTAINER)
    # The layer is the root of its image; the empty directory that mke2fs made there is not shown.
    assert tree(path) == WHOLE
    assert (path / "bin/su").stat().st_uid == SHIFT
    size = goroot.QUOTAS[CONTAINER] * MIB
    limit = driver.limit(CONTAINER)
    assert limit is not None
    assert limit.bytes == size
    assert fill(path / "fill", 2 * size)[1] == errno.ENOSPC
    (path / "fill").unlink()
    assert "lost+found" not in {change.path.strip("/") for change in driver.changes(CONTAINER)}
    with driver.diff(CONTAINER) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        names = tar.getnames()
    assert {"upper/file", "etc/.wh.kept"} <= set(names)
    assert not [name for name in names if name.startswith((".wh..wh.", "lost+found"))]
    driver.put(CONTAINER)
    with pytest.raises(NotSupported, match="layerlimit migrate"):
        driver.apply_diff(CONTAINER, io.BytesIO())
    driver.create("new", CHILD, limit=Limit(16 * MIB))
    with driver.mounted("new") as path:
        assert fill(path / "fill", 64 * MIB)[1] == errno.ENOSPC
    driver.remove("new")
    driver.cleanup()
    after = {name: facts for name, facts in goroot.picture(root).items() if _is_content(name)}
    assert after == before
    with goroot.mounted(root, CONTAINER) as content:
        assert (content / "upper" / "file").exists()


def _is_content(name: str) -> bool:
    """Content of layers without an image, and all chains."""
    top, _, rest = name.partition("/")
    return (top == "layers" and bool(rest)) or (
        top == "diff" and rest.partition("/")[0] in {BASE, CHILD, INIT} and "/" in rest
    )


@pytest.mark.lane("aufs")
def test_aufs_takes_over_what_fstab_mounted(root: Path, fstab: Path) -> None:
    image = root / "containers_quota" / f"{CONTAINER}.ext4"
    goroot.run("mount", "-o", "loop,rw", image, root / "diff" / CONTAINER)
    driver = Driver(root)
    path = driver.get(CONTAINER)
    assert tree(path) == WHOLE
    devices = subprocess.run(["losetup", "-j", image], check=True, capture_output=True, text=True).stdout
    assert len(devices.splitlines()) == 1
    driver.put(CONTAINER)
    driver.cleanup()


@pytest.mark.lane("aufs")
def test_aufs_layers_made_since_are_converted_too(root: Path, fstab: Path) -> None:
    driver = Driver(root)
    driver.create("new", CHILD, limit=Limit(16 * MIB))
    path = driver.get("new")
    (path / "etc" / "changed").unlink()
    driver.create("plain", CHILD)
    (driver.get("plain") / "etc" / "changed").unlink()
    driver.cleanup()
    adopt(root, fstab=fstab)
    driver = Driver(root, "overlay")
    for id in ("new", "plain"):
        assert [str(change) for change in driver.changes(id)] == ["C /etc", "D /etc/changed"]
        assert "changed" not in os.listdir(driver.get(id) / "etc")
    driver.cleanup()


def test_errors_are_typed(root: Path, fstab: Path) -> None:
    (root / "layers" / CONTAINER).write_text("../../etc\n")
    with pytest.raises(Error, match=CONTAINER):
        adopt(root, fstab=fstab)
    assert not (root / "format").exists()
