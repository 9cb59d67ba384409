"""What containerd itself, 1.6 and a current one, makes of the configuration that we write."""

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

pytestmark = pytest.mark.lane("engines")

ENGINES = Path(__file__).parents[2] / ".cache" / "engines"
ADDRESS, ROOT = "/run/layerlimit/layerlimit.sock", "/var/lib/layerlimit"
DIFFER = "layerlimit-diff"
TRANSFER = "io.containerd.transfer.v1.local"


def ask(program: Path, *words: str) -> str:
    done = subprocess.run([program, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("start", ["none", "its default"])
@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("which", ["debian", "bin"])
def test_containerd_reads_what_we_wrote(tmp_path: Path, which: str, start: str, default: bool) -> None:
    program = ENGINES / which / "containerd"
    installed = containerd_version(str(program))
    assert installed is not None
    path = tmp_path / "config.toml"
    if start == "its default":  # everything that it knows, in its own writing
        path.write_text(ask(program, "config", "default"))
    before = read_text(path)
    newer = installed >= (1, 7)
    stanzas = Stanzas(
        ("layerlimit", "small"),
        ADDRESS,
        ROOT,
        default=default,
        runtimes=newer,
        differ=newer,
        remap_ids=True,
    )
    edit = set_up_containerd(path, before, stanzas, installed=installed)
    apply_edit(edit)
    seen = tomllib.loads(ask(program, "--config", str(path), "config", "dump"))
    _check_proxies(seen)
    cri = seen["plugins"]
    if installed < (2, 0):
        used = cri["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"]
    else:
        used = cri["io.containerd.cri.v1.images"]["snapshotter"]
        _check_current(cri)
        assert seen["proxy_plugins"][DIFFER]["type"] == "diff"
        assert seen["proxy_plugins"]["small"]["capabilities"] == ["remap-ids"]
    assert used == ("layerlimit" if default else "overlayfs")

    undone = undo_containerd(path, edit.after, stanzas.snapshotters)
    apply_edit(undone)
    again = tomllib.loads(ask(program, "--config", str(path), "config", "dump"))
    path.write_text(before or f"version = {tomllib.loads(edit.after)['version']}\n")
    assert again == tomllib.loads(ask(program, "--config", str(path), "config", "dump"))


def _check_proxies(seen: dict[str, Any]) -> None:
    for name in ("layerlimit", "small"):
        proxy = seen["proxy_plugins"][name]
        assert (proxy["type"], proxy["address"]) == ("snapshot", ADDRESS)


def _check_current(plugins: dict[str, Any]) -> None:
    """What 2.x needs besides: where pulls unpack, and the runtimes of RuntimeClasses."""
    unpacking = [(each["snapshotter"], each["differ"]) for each in plugins[TRANSFER]["unpack_config"]]
    assert unpacking == [("overlayfs", "walking"), ("layerlimit", DIFFER), ("small", DIFFER)]
    assert plugins["io.containerd.service.v1.diff-service"]["default"] == [DIFFER, "walking"]
    runtimes = plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert runtimes["runc"]["snapshotter"] == ""
    for key in ("runtime_type", "snapshotter"):
        assert runtimes["small"][key] == {**runtimes["runc"], "snapshotter": "small"}[key]
    # Where the file says how runc runs, ours runs so; where it does not, containerd fills both in.
    if runtimes["small"]["sandboxer"]:
        assert runtimes["small"] == {**runtimes["runc"], "snapshotter": "small"}
    assert plugins["io.containerd.cri.v1.images"]["runtime_platforms"]["small"]["snapshotter"] == "small"
