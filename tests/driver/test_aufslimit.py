"""The face of the Go package, name for name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from layerlimit import aufslimit
from layerlimit.errors import AlreadyExists, Busy, InvalidArgument, NotFound, NotSupported
from layerlimit.limit import MIB, Limit
from layerlimit.linux.mount import FsContext
from tests import lanes

pytestmark = pytest.mark.lane("root", "overlay", "loop")


@pytest.fixture
def face(root: Path) -> Callable[[], aufslimit.Driver]:
    return lambda: aufslimit.init(root, union="overlay")


def has_aufs() -> bool:
    return "aufs" in Path("/proc/filesystems").read_text().split()


def test_names() -> None:
    assert aufslimit.MS_REMOUNT == 32
    assert sorted(aufslimit.__all__) == ["Driver", "MS_REMOUNT", "init", "unmount"]


def test_init_wants_aufs(root: Path) -> None:
    if has_aufs():
        driver = aufslimit.init(root)
        assert driver.union == "aufs"
        driver.cleanup()
        return
    with pytest.raises(NotSupported, match=r"(?i)aufs") as caught:
        aufslimit.init(root)
    assert caught.value.exit_code == 7
    assert not root.exists()


@pytest.mark.lane("aufs")
def test_init_on_aufs(root: Path) -> None:
    driver = aufslimit.init(root)
    assert (str(driver), driver.union) == ("aufslimit", "aufs")
    driver.cleanup()


def test_init_on_overlay(face: Callable[[], aufslimit.Driver], root: Path) -> None:
    driver = face()
    assert isinstance(driver, aufslimit.Driver)
    assert (str(driver), driver.union) == ("aufslimit", "overlay")
    assert face().ids() == []
    assert {"mnt", "diff", "layers"} <= set(os.listdir(root))


def test_removing_what_is_not_there(face: Callable[[], aufslimit.Driver]) -> None:
    driver = face()
    driver.remove("unknown")
    driver.create("1", "")
    driver.remove("1")
    driver.remove("1")
    with pytest.raises(InvalidArgument):
        driver.remove("../1")


def test_the_order_in_which_a_daemon_calls(face: Callable[[], aufslimit.Driver]) -> None:
    driver = face()
    driver.create("image", "")
    driver.create("c-init", "image")
    path = driver.get("c-init")
    (path / "hostname").write_text("stub")
    driver.create_with_quota("c", "c-init", 16)
    driver.put("c-init")
    assert driver.limit("c") == Limit(16 * MIB)
    assert driver.limit("c-init") is None
    assert os.listdir(driver.get("c")) == ["hostname"]
    driver.put("c")
    driver.remove("c")
    driver.remove("c-init")
    assert driver.ids() == ["image"]
    driver.cleanup()


@pytest.mark.parametrize("quota", [-1, -(1 << 63), (1 << 63) - 1, 1 << 70, 16 * 1024 * 1024])
def test_impossible_quotas(face: Callable[[], aufslimit.Driver], root: Path, quota: int) -> None:
    driver = face()
    with pytest.raises(InvalidArgument) as caught:
        driver.create_with_quota("1", "", quota)
    assert caught.value.code == "limit.range"
    assert not driver.exists("1")
    for name in ("diff", "layers", "meta", "containers_quota"):
        assert os.listdir(root / name) == []


def test_a_quota_of_nothing_is_none(face: Callable[[], aufslimit.Driver]) -> None:
    driver = face()
    driver.create_with_quota("1", "", 0)
    assert driver.limit("1") is None


def test_a_quota_is_mebibytes(face: Callable[[], aufslimit.Driver]) -> None:
    driver = face()
    driver.create_with_quota("1", "", 33)
    path = driver.get("1")
    space = os.statvfs(path)
    assert 33 * MIB <= space.f_bavail * space.f_frsize <= 33 * MIB * 1.01
    driver.cleanup()


def test_an_id_twice(face: Callable[[], aufslimit.Driver]) -> None:
    driver = face()
    driver.create("1", "")
    with pytest.raises(AlreadyExists):
        driver.create_with_quota("1", "", 16)
    with pytest.raises(NotFound):
        driver.create("2", "unknown")


def test_unmount(tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    with FsContext("tmpfs") as context:
        context.create()
        with context.mount() as mounted:
            mounted.attach(point)
    with (point / "file").open("w"):
        with pytest.raises(Busy):
            aufslimit.unmount(point)
    aufslimit.unmount(str(point))
    assert not point.is_mount()
    with pytest.raises(InvalidArgument, match="nothing is mounted"):
        aufslimit.unmount(point)


def test_unmount_of_a_layer(face: Callable[[], aufslimit.Driver]) -> None:
    driver = face()
    driver.create("1", "")
    driver.create_with_quota("2", "1", 16)
    path = driver.get("2")
    aufslimit.unmount(path)
    assert not driver.state("2").mounted
    (driver.get("2") / "file").touch()
    driver.cleanup()


def test_an_owner_instead_of_the_shift(root: Path) -> None:
    driver = aufslimit.init(root, union="overlay", owner=(100000, 100001))
    driver.create("1", "")
    driver.create_with_quota("2", "1", 16)
    for id in ("1", "2"):
        status = driver.get(id).stat()
        assert (status.st_uid, status.st_gid) == (100000, 100001)
    driver.cleanup()


def test_lanes_agree_with_the_kernel(tmp_path: Path) -> None:
    """That the AUFS lane is on exactly where these tests would expect AUFS to work."""
    assert bool(lanes.probe(tmp_path)["aufs"].missing) is not has_aufs()
