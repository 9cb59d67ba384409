"""mountinfo: parsing, escapes, order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerlimit.linux import mountinfo
from layerlimit.linux.mount import FsContext, bind, unmount
from layerlimit.linux.statx import statx

LINE = (
    b"36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n"
    b"7 36 0:21 / /a\\040b\\011c\\012d\\134e rw - overlay none ro,lowerdir=/l\\0541:/l\\072\\1342,work=/\n"
)


def test_every_field_of_a_line() -> None:
    first, second = mountinfo.parse(LINE)
    assert first == mountinfo.MountEntry(
        mount_id=36,
        parent_id=35,
        device=os.makedev(98, 0),
        root=Path("/mnt1"),
        mount_point=Path("/mnt2"),
        options=("rw", "noatime"),
        propagation=("shared:1", "master:2"),
        fstype="ext3",
        source="/dev/root",
        super_options=("rw", "errors=continue"),
    )
    assert second.mount_point == Path("/a b\tc\nd\\e")
    assert second.propagation == ()
    assert second.super_options == ("ro", "lowerdir=/l,1:/l:\\2", "work=/")


def test_names_that_are_no_utf8() -> None:
    (entry,) = mountinfo.parse(LINE.splitlines()[0].replace(b"/mnt2", b"/\xff"))
    assert os.fsencode(entry.mount_point) == b"/\xff"


@pytest.mark.parametrize("line", [b"36 35 98:0 / /mnt", b"x 35 98:0 / /m rw - ext4 /dev/a rw", b"\x00"])
def test_what_is_no_mountinfo_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        mountinfo.parse(line)


@pytest.mark.lane("root")
@pytest.mark.parametrize("name", ["plain", "a b", "tab\t", "line\nbreak", "back\\slash", "hash#", "\\040"])
def test_a_real_mount_is_found_by_its_name(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.mkdir()
    with FsContext("tmpfs") as context:
        context.set_string("source", "layer limit")
        context.create()
        with context.mount() as mounted:
            mounted.attach(target)
    try:
        found = [entry for entry in mountinfo.read() if entry.mount_point == target]
        assert [entry.mount_id for entry in found] == [statx(target).mount_id]
        assert found[0].device == target.stat().st_dev
        assert (found[0].fstype, found[0].source, found[0].root) == ("tmpfs", "layer limit", Path("/"))
    finally:
        unmount(target)
    assert target not in {entry.mount_point for entry in mountinfo.read(str(os.getpid()))}


@pytest.mark.lane("root")
def test_below_gives_the_order_of_unmounting(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    beside = tmp_path / "outer-beside"
    (outer / "inner").mkdir(parents=True)
    beside.mkdir()
    bind(tmp_path, beside)
    bind(outer, outer)
    bind(tmp_path, outer / "inner")
    try:
        found = [entry.mount_point for entry in mountinfo.below(outer, mountinfo.read())]
        assert found == [outer / "inner", outer]
    finally:
        for point in (outer / "inner", outer, beside):
            unmount(point)
