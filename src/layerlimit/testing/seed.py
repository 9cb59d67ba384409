"""The 23 behaviours that the tests of the Go driver's sibling ask for (``aufs_test.go``, Docker 0.9.1)."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from layerlimit.archive import Change, Kind
from layerlimit.driver import Driver
from layerlimit.errors import NotFound
from layerlimit.testing.factory import Behaviour, Factory

Create = Callable[..., None]

MANY = 126  # layers over each other; AUFS joins 127 at most


def layer_ids(count: int) -> list[str]:
    """Ids as Docker makes them, 64 hexadecimal digits: they fill an option page soonest."""
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1, count + 1)]


def stack_many(driver: Driver, create: Create) -> None:
    """126 layers, all mounted at once, each with a file of its own; every tenth deletes its parent's file."""
    parent = ""
    deleted = 0
    for number, id in enumerate(layer_ids(MANY), start=1):
        create(id, parent)
        path = driver.get(id)
        (path / id).touch()
        if number % 10 == 0:
            (path / parent).unlink()
            deleted += 1
        parent = id
    assert len(os.listdir(path)) == MANY - deleted == 114


class Seed(Behaviour):
    """Create, mount, unmount, measure, export, remove."""

    def test_new_driver(self, driver: Driver) -> None:
        assert driver.ids() == []

    def test_string(self, driver: Driver, factory: Factory) -> None:
        assert str(driver) == factory.name

    def test_create_directory_structure(self, driver: Driver, root: Path) -> None:
        for name in ("mnt", "layers", "diff"):
            assert (root / name).is_dir()

    def test_new_driver_from_existing_directory(
        self, driver: Driver, create: Create, factory: Factory, root: Path
    ) -> None:
        create("1")
        (driver.get("1") / "file").write_text("kept")
        again = factory.open(root)
        assert again.ids() == ["1"]
        assert (again.get("1") / "file").read_text() == "kept"

    def test_create_new_directory(self, driver: Driver, create: Create) -> None:
        create("1")
        assert driver.ids() == ["1"]

    def test_create_new_directory_structure(self, create: Create, root: Path) -> None:
        create("1")
        assert (root / "mnt" / "1").is_dir()
        assert (root / "diff" / "1").is_dir()
        assert (root / "layers" / "1").is_file()

    def test_remove_image(self, driver: Driver, create: Create, root: Path) -> None:
        create("1")
        driver.remove("1")
        for name in ("mnt", "diff", "layers"):
            assert os.listdir(root / name) == []
        assert not driver.exists("1")

    def test_get_without_parent(self, driver: Driver, create: Create, root: Path) -> None:
        create("1")
        assert driver.get("1") == root / "diff" / "1"

    def test_cleanup_with_no_directories(self, driver: Driver) -> None:
        driver.cleanup()

    def test_cleanup_with_directory(self, driver: Driver, create: Create) -> None:
        create("1")
        driver.cleanup()
        assert driver.exists("1")

    def test_mounted_false_response(self, driver: Driver, create: Create) -> None:
        create("1")
        assert driver.state("1").mounted is False

    def test_mounted_true_response(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        driver.get("2")
        assert driver.state("2").mounted is True

    def test_mount_with_parent(self, driver: Driver, create: Create, root: Path) -> None:
        create("1")
        create("2", "1")
        assert driver.get("2") == root / "mnt" / "2"
        driver.cleanup()
        assert driver.state("2").mounted is False

    def test_remove_mounted_directory(self, driver: Driver, create: Create, root: Path) -> None:
        create("1")
        create("2", "1")
        (driver.get("2") / "file").touch()
        assert driver.state("2").mounted
        driver.remove("2")
        assert not driver.exists("2")
        assert not (root / "mnt" / "2").exists()
        driver.cleanup()

    def test_create_with_invalid_parent(self, driver: Driver, create: Create, root: Path) -> None:
        with pytest.raises(NotFound, match="docker"):
            create("1", "docker")
        assert not driver.exists("1")
        for name in ("mnt", "diff", "layers"):
            assert os.listdir(root / name) == []

    def test_get_diff(self, driver: Driver, create: Create) -> None:
        create("1")
        with (driver.get("1") / "test_file").open("wb") as file:
            file.truncate(1024)
        with driver.diff("1") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            assert [(member.name, member.size) for member in tar] == [("test_file", 1024)]

    def test_changes(self, driver: Driver, create: Create) -> None:
        create("1")
        create("2", "1")
        (driver.get("2") / "test.txt").write_text("text")
        assert driver.changes("2") == [Change("/test.txt", Kind.ADD)]
        create("3", "2")
        (driver.get("3") / "test2.txt").write_text("text")
        assert driver.changes("3") == [Change("/test2.txt", Kind.ADD)]

    def test_diff_size(self, driver: Driver, create: Create) -> None:
        create("1")
        with (driver.get("1") / "test_file").open("wb") as file:
            file.truncate(1024)
        assert driver.diff_size("1") == 1024

    def test_child_diff_size(self, driver: Driver, create: Create) -> None:
        create("1")
        with (driver.get("1") / "test_file").open("wb") as file:
            file.truncate(1024)
        create("2", "1")
        assert driver.diff_size("2") == 0

    def test_exists(self, driver: Driver, create: Create) -> None:
        create("1")
        assert driver.exists("none") is False
        assert driver.exists("1") is True

    def test_status(self, driver: Driver, create: Create, root: Path) -> None:
        create("1")
        assert driver.status()[:2] == [("Root Dir", str(root)), ("Dirs", "1")]

    def test_apply_diff(self, driver: Driver, create: Create) -> None:
        create("1")
        with (driver.get("1") / "test_file").open("wb") as file:
            file.truncate(1024)
        create("2")
        create("3", "2")
        with driver.diff("1") as stream:
            driver.apply_diff("3", stream)
        assert (driver.get("3") / "test_file").stat().st_size == 1024

    def test_mount_more_than_42_layers(self, driver: Driver, create: Create) -> None:
        stack_many(driver, create)
