"""Sizes of layers: apparent as Docker counts, allocated as containerd does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerlimit.archive import Form, read_stream, size, usage
from layerlimit.archive.apply import apply
from layerlimit.errors import NotFound


def fill(root: Path) -> None:
    (root / "d").mkdir(parents=True)
    (root / "d/file").write_bytes(b"x" * 5000)
    (root / "hole").touch()
    os.truncate(root / "hole", 1 << 20)
    os.link(root / "d/file", root / "same")


@pytest.mark.parametrize("form", Form)
def test_apparent_size_counts_files_once_and_holes_in_full(tmp_path: Path, form: Form) -> None:
    fill(tmp_path / "upper")
    assert size(tmp_path / "upper", form=form) == 5000 + (1 << 20)
    (tmp_path / "upper/link").symlink_to("target")
    assert size(tmp_path / "upper", form=form) == 5000 + (1 << 20) + 6


def test_a_sparse_file_of_a_kibibyte_is_a_kibibyte(tmp_path: Path) -> None:
    (tmp_path / "test_file").touch()
    os.truncate(tmp_path / "test_file", 1024)
    assert size(tmp_path, form=Form.OVERLAY) == 1024


@pytest.mark.lane("root")
def test_whiteouts_and_metadata_count_nothing(tmp_path: Path) -> None:
    os.mknod(tmp_path / "gone", 0o20000, 0)
    assert size(tmp_path, form=Form.OVERLAY) == 0
    (tmp_path / ".wh.gone").write_bytes(b"ignored")
    (tmp_path / ".wh..wh.plnk").mkdir()
    (tmp_path / ".wh..wh.plnk/1.2").write_bytes(b"ignored")
    assert size(tmp_path, form=Form.AUFS) == 0


@pytest.mark.lane("root")
@pytest.mark.parametrize("form", [Form.OVERLAY, Form.AUFS])
def test_the_size_of_a_layer_is_what_applying_its_tar_reports(tmp_path: Path, form: Form) -> None:
    """graphtest's DiffApply: DiffSize(upper, "") equals the return of ApplyDiff."""
    fill(tmp_path / "upper")
    if form is Form.OVERLAY:
        os.mknod(tmp_path / "upper/gone", 0o20000, 0)
    else:
        (tmp_path / "upper/.wh.gone").touch()
    (tmp_path / "upper/link").symlink_to("target")
    (tmp_path / "copy").mkdir()
    with read_stream(tmp_path / "upper", form=form) as stream:
        applied = apply(stream, tmp_path / "copy", form=form, durable=False)
    assert applied.bytes == size(tmp_path / "upper", form=form) == size(tmp_path / "copy", form=form)


def test_usage_counts_blocks_and_inodes(tmp_path: Path) -> None:
    fill(tmp_path / "upper")
    fd = os.open(tmp_path / "upper/d/file", os.O_RDONLY)
    os.fsync(fd)  # blocks are allocated late
    os.close(fd)
    used = usage(tmp_path / "upper")
    assert used.inodes == 4  # the root, d, d/file, hole
    paths = [tmp_path / "upper", *(tmp_path / "upper").rglob("*")]
    assert used.bytes == sum(path.stat().st_blocks for path in paths if path.name != "same") * 512
    assert 5000 <= used.bytes < 1 << 20


def test_a_missing_layer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        size(tmp_path / "none", form=Form.OVERLAY)
    with pytest.raises(NotFound):
        usage(tmp_path / "none")
