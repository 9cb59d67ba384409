"""The harness alone, over containerd's own overlayfs: containers run, and nothing outlives an island."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import scratch
from tests.engines import cri, daemons, image, island
from tests.engines.conftest import Land
from tests.engines.daemons import CURRENT, DEBIANS, Containerd, Docker, Release
from tests.engines.island import awaited

ROOT = Path(__file__).parents[2]

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
    assert processes_in(inside) == []
    assert not control_groups(made.cgroup)


KILLED = """
import sys, time
from pathlib import Path
from tests import scratch
from tests.engines import image
from tests.engines.daemons import CURRENT, Containerd
from tests.engines.island import island
scratch.enter_mount_namespace()
with scratch.run_directory() as run, island(run) as made:
    engine = Containerd(made, CURRENT).start()
    engine.load(Path(sys.argv[1]), "overlayfs")
    engine.start_container("left", image.TEST_IMAGE, snapshotter="overlayfs")
    print(Path(f"/proc/{made.init}/ns/pid").readlink(), made.cgroup, flush=True)
    time.sleep(300)
"""


def test_nothing_outlives_killed_tests(archives: dict[str, Path]) -> None:
    line: list[str | Path] = [sys.executable, "-c", KILLED, archives["test"]]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            inside, cgroup = process.stdout.readline().split()
            assert len(processes_in(Path(inside))) == 3  # the first one, containerd and a shim
        finally:
            process.kill()
    awaited("the island to sink", lambda: processes_in(Path(inside)) == [])
    assert control_groups(cgroup)
    scratch.sweep()  # as the next run does
    assert not control_groups(cgroup)


def control_groups(name: str) -> list[str]:
    return [at for at, names, _ in os.walk("/sys/fs/cgroup") if name in names]


def test_docker_and_cri_answer(land: Land, archives: dict[str, Path]) -> None:
    with land() as made:
        containerd = Containerd(made, CURRENT, handlers=("overlayfs",)).start()
        docker = Docker(made, containerd, "overlayfs").start()
        docker("load", "--input", archives["test"])
        said = docker("run", "--rm", "--network=none", image.TEST_IMAGE, "cat", "/new")
        assert said.stdout == "new\n"
        for archive in archives.values():
            containerd.ctr("images", "import", "--local", archive, namespace="k8s.io")
        with cri.pods(containerd.address, made.cgroup) as pods:
            awaited("CRI to answer", pods.ready)
            sandbox = pods.run("pod", "overlayfs")
            container = pods.start(sandbox, "pod", image.TEST_IMAGE)
            assert pods.sh(container, "cat /new; exit 3") == (3, "new\n")
            pods.remove(sandbox)


def processes_in(namespace: Path) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/ns/pid") if _link(path) == namespace]


def _link(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError:
        return None  # the process ended


def test_versions_are_what_the_tables_say() -> None:
    assert CURRENT.version.startswith("2.")
    assert DEBIANS.version.startswith("1.")
    assert daemons.version(daemons.BUILT / "docker").startswith("29.")
