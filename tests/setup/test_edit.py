"""Writing a configuration file: whole or not at all, with a copy of the old one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerlimit.errors import Busy, InvalidArgument
from layerlimit.setup import Edit, apply_edit, read_text


def test_a_change_keeps_mode_and_owner_and_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("a\n")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 7, 8)
    before = path.stat()
    backup = apply_edit(Edit(path, "a\n", "b\n"))
    assert backup is not None
    assert (path.read_text(), backup.read_text()) == ("b\n", "a\n")
    for each in (path, backup):
        now = each.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    second = apply_edit(Edit(path, "b\n", "c\n"))
    assert second is not None
    assert second != backup
    assert sorted(tmp_path.iterdir()) == sorted([path, backup, second])


def test_a_new_file_is_readable_and_has_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "config.toml"
    assert apply_edit(Edit(path, None, "a\n")) is None
    assert path.read_text() == "a\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("a\n")
    link.symlink_to(real)
    apply_edit(Edit(link, "a\n", "b\n"))
    assert link.is_symlink()
    assert real.read_text() == "b\n"


def test_a_file_that_somebody_changed_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("theirs\n")
    for before in ("a\n", None):
        with pytest.raises(Busy):
            apply_edit(Edit(path, before, "b\n"))
    assert path.read_text() == "theirs\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    path.write_text("a\n")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        apply_edit(Edit(path, "a\n", "b\n"))
    assert path.read_text() == "a\n"
    assert [each for each in tmp_path.iterdir() if each.name.endswith(".new")] == []


def test_the_diff_is_unified_and_tells_of_a_missing_line_end() -> None:
    edit = Edit(Path("/etc/x"), "a\nb", "a\nb\nc\n")
    assert edit.diff() == (
        "--- /etc/x\n+++ /etc/x\n@@ -1,2 +1,3 @@\n a\n-b\n\\ No newline at end of file\n+b\n+c\n"
    )
    assert Edit(Path("/etc/x"), None, "a\n").diff().startswith("--- /dev/null\n+++ /etc/x\n")


def test_text_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_text(path) is None
    path.write_bytes(b"a\r\nb")
    assert read_text(path) == "a\r\nb"
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        read_text(path)
