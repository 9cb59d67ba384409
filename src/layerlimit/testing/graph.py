"""graphtest: what Docker asks of every graph driver (``daemon/graphdriver/graphtest``)."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerlimit.archive import Change, Kind
from layerlimit.driver import Driver
from layerlimit.errors import NotSupported
from layerlimit.limit import MIB, Limit
from layerlimit.testing.factory import Behaviour, Factory

Create = Callable[..., None]

DEPTH = 128


@contextmanager
def use(driver: Driver, id: str) -> Iterator[Path]:
    """A layer between Get and Put."""
    path = driver.get(id)
    try:
        yield path
    finally:
        driver.put(id)


@contextmanager
def no_umask() -> Iterator[None]:
    old = os.umask(0)
    try:
        yield
    finally:
        os.umask(old)


def make_base(driver: Driver, create: Create, id: str) -> None:
    """A layer with owners and modes that are easily lost."""
    with no_umask():
        create(id)
        with use(driver, id) as path:
            (path / "a subdir").mkdir()
            (path / "a subdir").chmod(0o705 | stat.S_ISVTX)
            os.chown(path / "a subdir", 1, 2)
            (path / "a file").write_text("Some data")
            (path / "a file").chmod(0o222 | stat.S_ISUID)


def check_base(driver: Driver, id: str) -> None:
    with use(driver, id) as path:
        subdir = (path / "a subdir").lstat()
        assert (subdir.st_mode, subdir.st_uid, subdir.st_gid) == (stat.S_IFDIR | 0o1705, 1, 2)
        file = (path / "a file").lstat()
        assert (file.st_mode, file.st_uid, file.st_gid) == (stat.S_IFREG | 0o4222, 0, 0)
        assert (path / "a file").read_text() == "Some data"
        assert sorted(os.listdir(path)) == ["a file", "a subdir"]


def file_at(path: Path, number: int) -> Path:
    return path / f"directory-{number // 100000}" / f"file-{number}"


def write_files(path: Path, count: int, seed: int) -> dict[str, bytes]:
    """``count`` files of 64 random bytes; what is in them, by path."""
    source = random.Random(seed)
    written = {}
    for number in range(count):
        file = file_at(path, number)
        file.parent.mkdir(exist_ok=True)
        content = source.randbytes(64)
        file.write_bytes(content)
        written[str(file.relative_to(path))] = content
    return written


def fill(path: Path, size: int) -> int:
    """Append ``size`` bytes and return the errno with which that ended, 0 if it did not."""
    with path.open("ab", buffering=0) as file:
        try:
            for _ in range(size // MIB):
                file.write(bytes(MIB))
        except OSError as error:
            return error.errno or -1
    return 0


class Graph(Behaviour):
    """Empty layers, bases, children, deep stacks, diffs, changes, a quota."""

    def test_create_empty(self, driver: Driver, create: Create) -> None:
        create("empty")
        assert driver.exists("empty")
        with use(driver, "empty") as path:
            status = path.stat()
            assert (status.st_mode, status.st_uid, status.st_gid) == (stat.S_IFDIR | 0o755, 0, 0)
            assert os.listdir(path) == []
        driver.remove("empty")

    def test_create_empty_child(self, driver: Driver, create: Create) -> None:
        create("base")
        create("empty", "base")
        with use(driver, "empty") as path:
            status = path.stat()
            assert (status.st_mode, status.st_uid, status.st_gid) == (stat.S_IFDIR | 0o755, 0, 0)
            assert os.listdir(path) == []

    def test_create_base(self, driver: Driver, create: Create) -> None:
        make_base(driver, create, "Base")
        check_base(driver, "Base")
        driver.remove("Base")

    def test_create_snap(self, driver: Driver, create: Create) -> None:
        make_base(driver, create, "Base")
        create("Snap", "Base")
        check_base(driver, "Snap")
        driver.remove("Snap")
        driver.remove("Base")

    def test_deep_layer_read(self, driver: Driver, create: Create) -> None:
        # The overlay and its lowers may be 500, but AUFS joins 127 branches and the test itself uses one.
        depth = min(DEPTH, 126 if driver.union == "aufs" else DEPTH)
        create("base")
        with use(driver, "base") as path:
            (path / "testfile.txt").write_text("base")
        previous = "base"
        for number in range(1, depth + 1):
            id = f"layer-{number}"
            create(id, previous)
            path = driver.get(id)
            if previous != "base":
                driver.put(previous)  # only now: a limited stack is not taken down and put up each time
            (path / "top-id").write_text(id)
            (path / f"directory-{number}").mkdir()
            (path / f"directory-{number}" / "layer-id").write_text(id)
            (path / f"directory-{number}" / "parent-id").write_text(previous)
            previous = id
        driver.put(previous)
        assert not driver.state(previous).mounted
        with use(driver, previous) as path:
            assert (path / "testfile.txt").read_text() == "base"
            assert (path / "top-id").read_text() == previous
            for number in range(depth, 0, -1):
                assert (path / f"directory-{number}" / "layer-id").read_text() == f"layer-{number}"
                below = f"layer-{number - 1}" if number > 1 else "base"
                assert (path / f"directory-{number}" / "parent-id").read_text() == below

    @pytest.mark.parametrize("count", [10, 500])
    def test_diff_apply(self, driver: Driver, create: Create, count: int) -> None:
        create("base")
        with use(driver, "base") as path:
            write_files(path, count, seed=3)
            (path / "file-removed").write_bytes(b"x" * 100)
            (path / "var" / "lib").mkdir(parents=True)
        create("upper", "base")
        with use(driver, "upper") as path:
            written = write_files(path, count, seed=6)
            (path / "file-removed").unlink()
            (path / "var" / "lib").rmdir()
            (path / "var").rmdir()
        size = driver.diff_size("upper")
        create("diff", "base")
        with driver.diff("upper") as stream:
            assert driver.apply_diff("diff", stream) == size == 64 * count
        with use(driver, "diff") as path:
            for name, content in written.items():
                assert (path / name).read_bytes() == content
            for name in ("file-removed", "var/lib", "var"):
                with pytest.raises(FileNotFoundError):
                    (path / name).lstat()

    def test_changes_exact(self, driver: Driver, create: Create) -> None:
        create("base")
        with use(driver, "base") as path:
            write_files(path, 20, seed=3)
        create("upper", "base")
        expected = [Change("/directory-0", Kind.MODIFY)]
        with use(driver, "upper") as path:
            for number in range(20):
                file = file_at(path, number)
                if number % 3 == 0:
                    file.write_bytes(b"y" * 64)
                    expected.append(Change(f"/directory-0/file-{number}", Kind.MODIFY))
                elif number % 3 == 1:
                    file.with_name(f"file-6-{number}").write_bytes(b"y" * 64)
                    expected.append(Change(f"/directory-0/file-6-{number}", Kind.ADD))
                else:
                    file.unlink()
                    expected.append(Change(f"/directory-0/file-{number}", Kind.DELETE))
        expected.sort(key=lambda change: change.path)
        assert len(expected) == 21
        assert driver.changes("upper") == expected

    def test_set_quota(self, driver: Driver, factory: Factory) -> None:
        limit = Limit(50 * MIB)
        if not factory.limits:
            with pytest.raises(NotSupported, match="limit"):
                driver.create("zygote", limit=limit)
            assert not driver.exists("zygote")
            return
        driver.create("zygote", limit=limit)
        with use(driver, "zygote") as path:
            (path / "fits").write_bytes(os.urandom(25 * MIB))
            with pytest.raises(OSError) as caught:
                (path / "does not").write_bytes(os.urandom(50 * MIB))
            assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
            (path / "does not").unlink()
            (path / "fits too").write_bytes(os.urandom(20 * MIB))

    def test_set_quota_on_a_child(self, driver: Driver, create: Create, factory: Factory) -> None:
        create("base")
        with use(driver, "base") as path:
            (path / "file").write_bytes(os.urandom(2 * MIB))
        limit = Limit(16 * MIB)
        if not factory.limits:
            with pytest.raises(NotSupported, match="limit"):
                driver.create("child", "base", limit=limit)
            return
        driver.create("child", "base", limit=limit)
        assert driver.limit("child") == limit
        with use(driver, "child") as path:
            space = os.statvfs(path)
            assert limit.bytes <= space.f_bavail * space.f_frsize <= limit.bytes * 1.01
            assert fill(path / "file", 17 * MIB) in (errno.ENOSPC, errno.EDQUOT)
            assert (path / "file").stat().st_size <= limit.bytes * 1.01
