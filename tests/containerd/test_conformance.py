"""containerd's own suite for snapshotters (tests/conformance), run against the daemon."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.containerd.client import Daemon

pytestmark = pytest.mark.lane("root", "overlay", "loop", "go")

MODULE = Path(__file__).parents[1] / "conformance"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("suite") / "suite"
    line = ["nice", "go", "test", "-mod=readonly", "-c", "-o", str(program), "."]
    subprocess.run(line, cwd=MODULE, check=True, timeout=280)
    return program


@pytest.mark.parametrize("name", ["layerlimit", pytest.param("small", marks=pytest.mark.long)])
def test_conformance(daemon: Daemon, suite: Path, tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [str(suite), "-test.root", "-test.parallel=1", "-test.v"],
        env={**os.environ, "LAYERLIMIT_ADDRESS": str(daemon.socket), "LAYERLIMIT_SNAPSHOTTER": name},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r"--- PASS: TestConformance/", done.stdout)) == 21
