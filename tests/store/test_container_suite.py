"""Behaviours that the suite of containers/storage pins and no other test here does; see docs/check.md."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import io
import lzma
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd

from layerlimit import Busy, Limit, NotFound, Store
from layerlimit.errors import InvalidArgument, NotSupported
from layerlimit.linux.files import FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, clear_flags
from layerlimit.linux.statx import is_mount_point
from tests.archive.images import layer_tar

MIB = 1 << 20
JUNK = b"This is no tar.\n" * 100

pytestmark = pytest.mark.lane("overlay", "loop")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root") as store:
        yield store
        store.driver.cleanup()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
}


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("limit", [None, Limit(16 * MIB)], ids=["plain", "limited"])
def test_apply_junk(store: Store, how: str, limit: Limit | None) -> None:
    """A whole stream that holds no tar fails cleanly, and again; then the layer takes a good one."""
    store.create("web", limit=limit)
    for _ in range(2):
        with pytest.raises((InvalidArgument, NotSupported)):
            store.apply("web", io.BytesIO(PACKED[how](JUNK)))
        with pytest.raises((InvalidArgument, NotSupported)):
            store.import_tar("junk", io.BytesIO(PACKED[how](JUNK)))
        assert store.changes("web") == []
        assert [info.name for info in store.ls()] == ["web"]
        assert list(store.check()) == []
    store.apply("web", io.BytesIO(layer_tar({"file": b"x"})))
    assert [change.path for change in store.changes("web")] == ["/file"]


def test_more_layers_than_a_page_of_options_holds(store: Store) -> None:
    """Over 127 layers, each with a file of its own and one that all have."""
    above = ""
    for number in range(130):
        tar = layer_tar({f"own-{number}": b"%d" % number, "common": b"%d" % number})
        above = store.import_tar(f"{number}", io.BytesIO(tar), parent=above).name
    store.create("top", above, limit=Limit(16 * MIB))
    with store.mounted("top") as path:
        assert (path / "common").read_bytes() == b"129"
        assert [(path / f"own-{number}").read_bytes() for number in range(130)] == [
            b"%d" % number for number in range(130)
        ]
        (path / "common").unlink()
        assert not (path / "common").exists()


def test_two_mounts_need_two_unmounts(store: Store) -> None:
    store.create("new")
    store.commit("new", "base")
    store.create("web", "base", limit=Limit(16 * MIB))
    assert not store.state("web").mounted
    path = store.mount("web")
    assert store.mount("web") == path
    store.umount("web")
    assert (store.state("web").mounted, store.state("web").holds) == (True, 1)
    assert is_mount_point(path)
    with pytest.raises(Busy):
        store.rm("web")
    store.umount("web")
    assert not store.state("web").mounted
    assert not is_mount_point(path)
    store.umount("web")  # once more is nothing


def test_a_name_moves_from_one_layer_to_another(store: Store) -> None:
    for name in ("one", "two"):
        store.import_tar(name, io.BytesIO(layer_tar({name: b"x"})))
    store.create("child", "one")
    ids = {name: store.stat(name).id for name in ("one", "two")}
    store.rename("one", "old")
    store.rename("two", "one")
    assert (store.stat("old").id, store.stat("one").id) == (ids["one"], ids["two"])
    assert [change.path for change in store.changes("one")] == ["/two"]
    assert store.stat("child").parent == "old"
    with pytest.raises(NotFound):
        store.stat("two")
    store.rm("one")
    store.rename("old", "one")
    assert store.stat("child").parent == "one"


@pytest.mark.parametrize("limit", [None, Limit(16 * MIB)], ids=["plain", "limited"])
def test_immutable_files_inside_a_layer_can_be_removed(store: Store, limit: Limit | None) -> None:
    store.create("web", limit=limit)
    with store.mounted("web") as path:
        (path / "directory").mkdir()
        (path / "directory/file").write_text("x")
        for each in (path / "directory/file", path / "directory"):
            fd = os.open(each, os.O_RDONLY)
            (flags,) = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", flags | 0x10))
            os.close(fd)
        with pytest.raises(PermissionError):
            (path / "directory/file").unlink()
    store.rm("web")
    assert store.gc() == []
    assert store.driver.ids() == []
    assert os.listdir(store.root / "trash") == []
    assert clear_flags(store.root)


def test_exported_layers_imported_anew_are_the_same(store: Store) -> None:
    above = ""
    for number in range(3):
        store.create("new", above)
        with store.mounted("new") as path:
            (path / f"own-{number}").write_bytes(os.urandom(5000))
            (path / "common").write_text(f"{number}")
            if number == 2:
                (path / "own-0").unlink()
        above = store.commit("new", f"{number}").name
    tars = []
    for number in range(3):
        with store.diff(f"{number}") as stream:
            tars.append(stream.read())
    above = ""
    for number, tar in enumerate(tars):
        above = store.import_tar(f"copy {number}", io.BytesIO(tar), parent=above).name
        assert store.changes(above) == store.changes(f"{number}")
        with store.diff(above) as stream:
            assert stream.read() == tar


def test_a_root_that_is_deep_relative_and_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store("not/yet/there") as store:
        store.create("web", limit=Limit(16 * MIB))
        monkeypatch.chdir("/")
        with store.mounted("web") as path:
            assert path.is_relative_to(tmp_path / "not/yet/there")
