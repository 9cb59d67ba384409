"""The harness alone, over containerd's own overlayfs: containers run, and nothing outlives an island."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import daemons, image, island
from tests.engines.daemons import CURRENT, DEBIANS, Containerd, Release

pytestmark = pytest.mark.lane("engines")


@pytest.mark.parametrize("release", [DEBIANS, CURRENT], ids=lambda release: release.name)
def test_nothing_outlives_an_island(tmp_path: Path, archives: dict[str, Path], release: Release) -> None:
    with island.island(tmp_path) as made:
        containerd = Containerd(made, release).start()
        containerd.load(archives["test"], "overlayfs")
        said = containerd.run("c", image.TEST_IMAGE, "/bin/ls", "/old", "/hidden", snapshotter="overlayfs")
        assert said.stdout.split() == ["/hidden:", "above", "/old:", "kept"], said.stderr
        containerd.start_container("left", image.TEST_IMAGE, snapshotter="overlayfs")
        inside = Path(f"/proc/{made.init}/ns/pid").readlink()
        assert made.mounts()
    alive = [path for path in Path("/proc").glob("[0-9]*/ns/pid") if _link(path) == inside]
    assert alive == []
    assert list(Path("/sys/fs/cgroup").glob(f"**/{made.cgroup}")) == []


def _link(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError:
        return None  # the process ended


def test_versions_are_what_the_tables_say() -> None:
    assert CURRENT.version.startswith("2.")
    assert DEBIANS.version.startswith("1.")
    assert daemons.version(daemons.BUILT / "docker").startswith("29.")
