"""Which marks of a layer's directory count."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.archive.test_write import export


@pytest.mark.lane("root")
def test_marks_that_anybody_can_set_hide_and_refuse_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").touch()
    for name in ("opaque", "metacopy", "redirect"):
        os.setxattr(tmp_path / "d", f"user.overlay.{name}", b"y")
    _, _, tar = export(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(tar)) as found:
        assert found.getnames() == ["d", "d/file"]
    assert b"overlay" not in tar
