"""A limit that grows under a mount that an engine made; by a label, while the mount is written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containerd.client import MIB, Daemon, mount, unmount
from tests.vm.inspection import fitting

pytestmark = [pytest.mark.lane("root", "overlay", "loop", "resource"), pytest.mark.guest]

MAX_SIZE, IN_FORCE = "containerd.io/snapshot/max-size", "layerlimit/limit.bytes"
SMALL, LARGE = 16 * MIB, 40 * MIB


def test_label_grows_what_is_mounted(daemon: Daemon, tmp_path: Path) -> None:
    snapshots, at = daemon.of(), tmp_path / "at"
    snapshots.layer("base")
    mount(snapshots.prepare_with("default/1/a", "base", {MAX_SIZE: str(SMALL)}), at)
    try:
        first = fitting(at / "full", most=LARGE)
        assert first is not None
        assert SMALL - MIB <= first <= SMALL * 1.03
        (at / "kept").write_bytes(b"k" * (12 * MIB))
        with pytest.raises(OSError, match="No space"):
            (at / "more").write_bytes(bytes(8 * MIB))
        snapshots.update("default/1/a", {MAX_SIZE: str(LARGE)}, f"labels.{MAX_SIZE}")
        assert snapshots.stat("default/1/a").labels[IN_FORCE] == str(LARGE)
        (at / "more").write_bytes(bytes(20 * MIB))
        assert snapshots.usage("default/1/a")[0] >= 32 * MIB
        with pytest.raises(OSError, match="No space"):
            (at / "too much").write_bytes(bytes(12 * MIB))
        assert (at / "kept").read_bytes() == b"k" * (12 * MIB)
    finally:
        unmount(at)
