"""The unit: what keeps containers alive over a restart of the daemon."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "layerlimit.service"


class _Unit(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def read_unit() -> _Unit:
    unit = _Unit(strict=True, delimiters=("=",), comment_prefixes=("#",))
    unit.read(UNIT)
    return unit


def test_engines_wait_for_the_socket() -> None:
    unit = read_unit()
    assert {"containerd.service", "docker.service"} <= set(unit["Unit"]["Before"].split())
    assert unit["Service"]["Type"] == "notify"
    assert unit["Service"]["ExecStart"].split()[1:] == ["serve"]


def test_a_restart_disturbs_no_container() -> None:
    service = read_unit()["Service"]
    expected = {
        "KillMode": "process",
        "Restart": "always",
        "RestartSec": "1",
        "OOMScoreAdjust": "-999",
        "LimitNOFILE": "infinity",
        "Delegate": "yes",
        "RuntimeDirectory": "layerlimit",
        "RuntimeDirectoryPreserve": "yes",
    }
    assert {key: service.get(key) for key in expected} == expected


def test_mounts_are_made_in_the_host_namespace() -> None:
    """Each of these (systemd.exec(5)) gives the service a mount namespace of its own."""
    own = (
        "Private",
        "Protect",
        "ReadOnly",
        "ReadWrite",
        "Inaccessible",
        "Bind",
        "Root",
        "Mount",
        "Temporary",
    )
    keys = read_unit()["Service"]
    assert [key for key in keys if key.startswith(own) or key == "DynamicUser"] == []


@pytest.mark.lane("systemd_analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "layerlimit.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/layerlimit", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
