"""What dockerd itself makes of the daemon.json that we write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from layerlimit.setup import apply_edit, set_up_docker

pytestmark = pytest.mark.lane("engines")

DOCKERD = Path(__file__).parents[2] / ".cache" / "engines" / "bin" / "dockerd"


@pytest.mark.parametrize("text", [None, '{"features": {"buildkit": true}, "mtu": 1450}'])
def test_docker_accepts_what_we_wrote(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "daemon.json"
    if text is not None:
        path.write_text(text)
    apply_edit(set_up_docker(path, text, "layerlimit"))
    command = [str(DOCKERD), "--validate", "--userland-proxy=false", "--config-file", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "configuration OK" in done.stdout + done.stderr
