"""What containerd itself makes of the configuration that we write."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from layerlimit.setup import (
    Stanzas,
    apply_edit,
    containerd_version,
    read_text,
    set_up_containerd,
    undo_containerd,
)

pytestmark = pytest.mark.lane("containerd")

ADDRESS, ROOT = "/run/layerlimit/layerlimit.sock", "/var/lib/layerlimit"


def dump(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["containerd", "--config", str(path), "config", "dump"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


def generated() -> str:
    """The longest configuration there is: everything that containerd knows, in its own writing."""
    done = subprocess.run(["containerd", "config", "default"], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("start", ["none", "generated"])
@pytest.mark.parametrize("default", [False, True])
def test_containerd_reads_what_we_wrote(tmp_path: Path, start: str, default: bool) -> None:
    path = tmp_path / "config.toml"
    if start == "generated":
        path.write_text(generated())
    installed = containerd_version()
    assert installed is not None
    stanzas = Stanzas(("layerlimit", "small"), ADDRESS, ROOT, default=default, runtimes=installed >= (1, 7))
    before = read_text(path)
    edit = set_up_containerd(path, before, stanzas, installed=installed)
    apply_edit(edit)
    seen = dump(path)
    for name in ("layerlimit", "small"):
        assert seen["proxy_plugins"][name]["type"] == "snapshot"
        assert seen["proxy_plugins"][name]["address"] == ADDRESS
    if installed < (2, 0):
        cri = seen["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
        assert cri["snapshotter"] == ("layerlimit" if default else "overlayfs")
    undone = undo_containerd(path, edit.after, stanzas.snapshotters)
    apply_edit(undone)
    if before is not None and not default:
        assert tomllib.loads(undone.after) == _without_empty(tomllib.loads(before))


def _without_empty(table: dict[str, Any]) -> dict[str, Any]:
    """An empty table of proxy plugins goes with the last of them."""
    return {key: value for key, value in table.items() if key != "proxy_plugins" or value}
