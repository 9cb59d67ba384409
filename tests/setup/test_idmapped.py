"""Whether overlay takes layers with mapped owners."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerlimit.linux.mountinfo import read
from layerlimit.setup.idmapped import takes_mapped_layers
from tests.lanes import file_system

pytestmark = pytest.mark.lane("root")


def test_it_depends_on_the_file_system(tmp_path: Path) -> None:
    before = {entry.mount_id for entry in read()}
    assert not takes_mapped_layers(Path("/proc/self/fd"))  # nothing can be made there
    # Owners can be mapped on every disk's file system that the tests run on, but not on a union's.
    assert takes_mapped_layers(tmp_path / "not" / "there") == (file_system(tmp_path) != "overlay")
    assert list(tmp_path.iterdir()) == []
    assert {entry.mount_id for entry in read()} <= before
