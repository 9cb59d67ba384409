"""Data roots of Docker before 0.7, taken in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit import Driver
from layerlimit.driver.migration import relocate
from layerlimit.errors import Corrupt, Error, InvalidArgument, NotFound
from layerlimit.union import Aufs, Overlay, Union
from tests import scratch
from tests.driver import goroot

BASE, IMAGE, CONTAINER = (
    hashlib.sha256(name.encode()).hexdigest() for name in ("base", "image", "container")
)


@pytest.fixture(
    params=[
        pytest.param(Overlay(), id="overlay", marks=pytest.mark.lane("root", "overlay")),
        pytest.param(Aufs(), id="aufs", marks=pytest.mark.lane("root", "aufs")),
    ]
)
def union(request: pytest.FixtureRequest) -> Union:
    made: Union = request.param
    return made


@pytest.fixture
def driver(root: Path, union: Union) -> Iterator[Driver]:
    made = Driver(root, union)
    yield made
    made.cleanup()


class Old:
    """A data root as Docker 0.6 left it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "graph").mkdir(parents=True)
        (path / "containers").mkdir()
        (path / "repositories").write_text("{}")
        self.set_up: list[str] = []

    def image(self, id: str, parent: str = "", **files: str) -> Path:
        directory = self.path / "graph" / id
        (directory / "layer").mkdir(parents=True)
        described = {"id": id, "comment": "ignored"} | ({"parent": parent} if parent else {})
        (directory / "json").write_text(json.dumps(described))
        return self._write(directory / "layer", files)

    def container(self, id: str, image: str, **files: str) -> Path:
        directory = self.path / "containers" / id
        (directory / "rw").mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({"Image": image, "ID": id}))
        return self._write(directory / "rw", files)

    def _write(self, directory: Path, files: dict[str, str]) -> Path:
        for name, text in files.items():
            (directory / name).write_text(text)
        return directory

    def setup_init(self, path: str) -> None:
        self.set_up.append(path)
        (Path(path) / "stub").write_text("made by setup")


@pytest.fixture
def old(ground: Path) -> Old:
    made = Old(ground / "old")
    made.image(IMAGE, BASE, above="image")
    base = made.image(BASE, below="base", gone="base")
    (base / "directory").mkdir()
    rw = made.container(CONTAINER, IMAGE, written="container")
    (rw / ".wh.gone").touch()
    (made.path / "graph" / "_tmp").mkdir()
    (made.path / "graph" / ("e" * 64)).mkdir()  # no layer: not an image
    (made.path / "containers" / ("e" * 64)).mkdir()  # no rw
    return made


def check(driver: Driver) -> None:
    assert driver.ids() == sorted([BASE, IMAGE, CONTAINER, f"{CONTAINER}-init"])
    parents = {id: driver.parent(id) for id in driver.ids()}
    assert parents == {BASE: "", IMAGE: BASE, f"{CONTAINER}-init": IMAGE, CONTAINER: f"{CONTAINER}-init"}
    with driver.mounted(CONTAINER) as path:
        assert {name.name for name in path.iterdir()} == {"below", "above", "written", "stub", "directory"}
        assert (path / "below").read_text() == "base"
        assert (path / "stub").read_text() == "made by setup"
        (path / "new").write_text("goes on")
        (path / "new").unlink()
    assert [str(change) for change in driver.changes(CONTAINER)] == ["D /gone", "A /written"]
    assert scratch.mounts_below(driver.root) == []


def test_images_and_containers(driver: Driver, old: Old) -> None:
    driver.migrate(old.path, old.setup_init)
    assert old.set_up == [str(driver.root / "mnt" / f"{CONTAINER}-init")]
    assert not (old.path / "repositories").exists()
    assert (old.path / "repositories-aufs").read_text() == "{}"
    assert not (old.path / "graph" / BASE / "layer").exists()
    check(driver)


def test_again_is_nothing(driver: Driver, old: Old, root: Path) -> None:
    driver.migrate(str(old.path), old.setup_init)
    before = {path: path.lstat().st_mtime_ns for path in (*root.rglob("*"), *old.path.rglob("*"))}
    driver.migrate(old.path, old.setup_init)
    assert {path: path.lstat().st_mtime_ns for path in (*root.rglob("*"), *old.path.rglob("*"))} == before
    assert len(old.set_up) == 1
    check(driver)


def test_nothing_to_do(driver: Driver, tmp_path: Path) -> None:
    driver.migrate(tmp_path / "none", pytest.fail)
    (tmp_path / "repositories").write_text("{}")
    driver.migrate(tmp_path, pytest.fail)
    assert (tmp_path / "repositories").exists()
    assert driver.ids() == []


class _Interrupted(BaseException):
    pass


@pytest.mark.parametrize("method", ["create", "mounted"])
@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("after", [False, True])
def test_interrupted_and_run_again(
    driver: Driver, old: Old, monkeypatch: pytest.MonkeyPatch, method: str, at: int, after: bool
) -> None:
    calls = 0
    real = getattr(driver, method)

    def interrupted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls > at and not after:
            raise _Interrupted
        result = real(*arguments, **options)
        if calls > at:
            raise _Interrupted
        return result

    with monkeypatch.context() as patch:
        patch.setattr(driver, method, interrupted)
        try:
            driver.migrate(old.path, old.setup_init)
        except _Interrupted:
            pass
        else:
            assert method == "mounted"
            assert at > 0
    driver.migrate(old.path, old.setup_init)
    check(driver)


@pytest.mark.parametrize("at", range(4))
def test_interrupted_while_content_moves(
    driver: Driver, old: Old, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = 0
    real = os.rename

    def interrupted(source: Path, target: Path, **options: int) -> None:
        nonlocal calls
        if "old" in Path(source).parts:
            calls += 1
            if calls > at:
                raise _Interrupted
        real(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupted)
        with pytest.raises(_Interrupted):
            driver.migrate(old.path, old.setup_init)
    driver.migrate(old.path, old.setup_init)
    check(driver)


def test_a_failing_setup_is_run_again(driver: Driver, old: Old) -> None:
    def fail(path: str) -> None:
        raise InvalidArgument("no stub for you")

    with pytest.raises(InvalidArgument, match="no stub"):
        driver.migrate(old.path, fail)
    assert not driver.exists(CONTAINER)
    assert scratch.mounts_below(driver.root) == []
    driver.migrate(old.path, old.setup_init)
    check(driver)


def test_a_parent_that_is_missing(driver: Driver, old: Old) -> None:
    old.image("f" * 64, "d" * 64)
    with pytest.raises(NotFound, match="d" * 64):
        driver.migrate(old.path, old.setup_init)
    assert not driver.exists("f" * 64)


def test_a_container_without_its_image(driver: Driver, old: Old) -> None:
    old.container("f" * 64, "d" * 64)
    with pytest.raises(NotFound, match="d" * 64):
        driver.migrate(old.path, old.setup_init)
    assert not driver.exists("f" * 64)
    assert not driver.exists("f" * 64 + "-init")


def test_images_that_are_each_others_parents(driver: Driver, old: Old) -> None:
    old.image("f" * 64, "d" * 64)
    old.image("d" * 64, "f" * 64)
    with pytest.raises(Corrupt, match="parents"):
        driver.migrate(old.path, old.setup_init)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 7}', '{"parent": "x"}'])
def test_json_that_cannot_be_read(driver: Driver, old: Old, text: str) -> None:
    (old.path / "graph" / IMAGE / "json").write_text(text)
    with pytest.raises(Corrupt, match="json"):
        driver.migrate(old.path, old.setup_init)
    (old.path / "graph" / IMAGE / "json").unlink()
    with pytest.raises(Corrupt, match="json"):
        driver.migrate(old.path, old.setup_init)


def test_ids_from_json_are_checked(driver: Driver, old: Old, tmp_path: Path) -> None:
    (old.path / "graph" / IMAGE / "json").write_text(json.dumps({"id": "../../x"}))
    with pytest.raises(InvalidArgument):
        driver.migrate(old.path, old.setup_init)


def test_a_busy_source_is_linked_and_moved_later(driver: Driver, old: Old, root: Path) -> None:
    """A source that is a mount of its own cannot be renamed (EBUSY, or EXDEV)."""
    layer = old.path / "graph" / BASE / "layer"
    goroot.run("mount", "--bind", layer, layer)
    try:
        driver.migrate(old.path, old.setup_init)
        assert (root / "diff" / BASE).readlink() == layer
        check(driver)
        assert [str(change) for change in driver.changes(BASE)] == [
            "A /below",
            "A /directory",
            "A /gone",
        ]
        assert driver.diff_size(BASE) == 8
    finally:
        goroot.run("umount", layer)
    driver.migrate(old.path, old.setup_init)
    assert not (root / "diff" / BASE).is_symlink()
    assert not layer.exists()
    check(driver)


def test_another_file_system_is_linked(driver: Driver, old: Old, root: Path, ground: Path) -> None:
    elsewhere = ground / "elsewhere"
    elsewhere.mkdir()
    goroot.run("mount", "-t", "tmpfs", "tmpfs", elsewhere)
    try:
        moved = elsewhere / "old"
        goroot.run("cp", "-a", old.path, moved)
        driver.migrate(moved, old.setup_init)
        assert (root / "diff" / IMAGE).is_symlink()
        check(driver)
        driver.remove(CONTAINER)
        assert (moved / "containers" / CONTAINER / "rw").exists()
    finally:
        driver.cleanup()
        goroot.run("umount", elsewhere)


def test_relocate_says_both_reasons(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "in the way").touch()
    (tmp_path / "old").mkdir()
    with pytest.raises((Error, OSError), match="not empty"):
        relocate(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new" / "in the way").exists()
    assert (tmp_path / "old").exists()
