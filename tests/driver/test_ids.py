"""Ids are names of files: nothing that is not one gets anywhere near the disk."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlimit import Driver, adopt
from layerlimit.driver.layout import check_id, is_id
from layerlimit.errors import InvalidArgument, NotFound

pytestmark = pytest.mark.lane("root", "overlay")

BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\n",
    "\na",
    "a\0b",
    "a b",
    "a:b",
    "a,b",
    "a\\b",
    "-a",
    "_a",
    ".hidden",
    "é",
    "a\udcff",
    "x" * 129,
    "x" * 4096,
    "1-removing",
    "a@ro",
    "١",
]
GOOD = ["1", "A", "Base", "x" * 128, "a-init", "a.b_c-d", "0-removing.", "removing"]

CALLS: dict[str, Callable[[Driver, str], object]] = {
    "create": lambda driver, id: driver.create(id),
    "create_with_quota": lambda driver, id: driver.create_with_quota(id, "", 0),
    "get": lambda driver, id: driver.get(id),
    "view": lambda driver, id: driver.get(id, read_only=True),
    "put": lambda driver, id: driver.put(id),
    "mounts": lambda driver, id: driver.mounts(id),
    "release": lambda driver, id: driver.release(id),
    "remove": lambda driver, id: driver.remove(id),
    "parent": lambda driver, id: driver.parent(id),
    "limit": lambda driver, id: driver.limit(id),
    "usage": lambda driver, id: driver.usage(id),
    "state": lambda driver, id: driver.state(id),
    "changes": lambda driver, id: driver.changes(id),
    "diff": lambda driver, id: driver.diff(id),
    "diff_size": lambda driver, id: driver.diff_size(id),
    "apply_diff": lambda driver, id: driver.apply_diff(id, io.BytesIO()),
}


@pytest.mark.parametrize("id", BAD, ids=lambda id: f"{id[:12]!r}")
def test_bad_ids_are_refused_everywhere(driver: Driver, root: Path, id: str) -> None:
    before = sorted(root.rglob("*"))
    for name, call in CALLS.items():
        with pytest.raises(InvalidArgument) as caught:
            call(driver, id)
        assert caught.value.code == "id.invalid", name
        assert len(str(caught.value)) < 400
    with pytest.raises(InvalidArgument), driver.mounted(id):
        pass
    assert driver.exists(id) is False
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("parent", [bad for bad in BAD if bad], ids=lambda id: f"{id[:12]!r}")
def test_bad_parents_are_refused(driver: Driver, parent: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        driver.create("1", parent)
    assert caught.value.code == "id.invalid"
    assert driver.ids() == []


@pytest.mark.parametrize("id", GOOD, ids=lambda id: id[:12])
def test_good_ids(driver: Driver, id: str) -> None:
    driver.create(id)
    driver.create("child", id)
    (driver.get("child") / "file").touch()
    assert driver.exists(id)
    assert driver.ids() == sorted([id, "child"])
    assert driver.parent("child") == id
    driver.cleanup()
    driver.remove("child")
    driver.remove(id)
    assert driver.ids() == []


@given(st.text(max_size=200))
def test_what_passes_is_one_safe_name(id: str) -> None:
    try:
        check_id(id)
    except InvalidArgument:
        assert not is_id(id)
        return
    assert is_id(id)
    assert id.isascii()
    assert not set(id) & set("/\0\n:,@ \\")
    assert os.path.basename(os.path.normpath(id)) == id
    assert 1 <= len(id) <= 128


def test_names_on_disk_that_are_no_ids_are_no_layers(driver: Driver, root: Path) -> None:
    driver.create("1")
    for name in (".hidden", "two words", "x-removing"):
        (root / "layers" / name).write_text("")
    (root / "layers" / "directory").mkdir()
    (root / "layers" / "link").symlink_to("1")
    assert driver.ids() == ["1"]
    assert not driver.exists("directory")
    assert not driver.exists("link")
    with pytest.raises(NotFound):
        driver.get("directory")


def test_an_id_is_not_taken_for_the_pattern_of_another(driver: Driver) -> None:
    """The Go driver deleted every line of /etc/fstab that held the id (defect 4)."""
    for id in ("1", "11", "1.1", "101"):
        driver.create(id)
    driver.remove("1")
    assert driver.ids() == ["1.1", "101", "11"]


def test_chains_on_disk_are_checked(driver: Driver, root: Path) -> None:
    driver.create("1")
    for text in ("../../etc\n", "1\n", "a\na\n", "\xff\n"):
        (root / "layers" / "1").write_text(text, encoding="latin-1")
        with pytest.raises(Exception, match="chain of layer 1 is damaged"):
            driver.get("1")
    (root / "layers" / "1").write_text("\n\n")
    driver.get("1")


def test_adopt_takes_no_ids_from_outside(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "a").write_text("../../../etc\n")
    with pytest.raises(Exception, match="chain of layer a is damaged"):
        adopt(tmp_path, fstab=tmp_path / "none")
    assert os.listdir(tmp_path) == ["layers"]
