"""What waits for its deletion."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerlimit.store import Store

pytestmark = pytest.mark.lane("root", "overlay")


def test_a_removed_layer_waits_until_the_reaper_has_run(tmp_path: Path) -> None:
    with Store(tmp_path / "root") as store:
        store.create("web")
        assert store.reaper.waiting() == 0
        store.rm("web")
        waiting = store.reaper.waiting()
        store.gc()
        assert (waiting, store.reaper.waiting()) == (1, 0)
        store.driver.cleanup()
