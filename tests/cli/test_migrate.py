"""``layerlimit migrate``: a root that the Go driver left."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from layerlimit.driver import Driver
from tests.cli.conftest import Cli


@pytest.fixture
def go_root(tmp_path: Path) -> Path:
    """A base and a layer over it that hides a file, in AUFS form, with owners shifted by 100000."""
    root = tmp_path / "root"
    for name in ("base", "web"):
        for place in ("diff", "mnt"):
            (root / place / name).mkdir(parents=True)
    (root / "layers").mkdir()
    (root / "layers/base").write_text("")
    (root / "layers/web").write_text("base\n")
    (root / "diff/base/kept").write_text("kept")
    (root / "diff/base/gone").write_text("gone")
    (root / "diff/web/.wh.gone").write_text("")
    (root / "diff/web/.wh..wh.aufs").write_text("")
    return root


def test_a_root_of_the_go_driver_is_refused_with_the_cure(cli: Cli, go_root: Path) -> None:
    error = cli("--format", "json", "ls", code=7).error
    assert error["code"] == "root.go"
    assert f"layerlimit migrate {go_root}" in error["hint"]


def test_dry_run_and_conversion(cli: Cli, go_root: Path) -> None:
    expected = {"root": str(go_root), "layers": ["base", "web"], "limited": [], "markers": 1, "fstab": []}
    assert cli.json("migrate", str(go_root), "--dry-run") == {**expected, "dry_run": True}
    assert (go_root / "diff/web/.wh.gone").exists()
    assert cli.json("migrate", str(go_root)) == {**expected, "dry_run": False}
    assert [(entry["name"], entry["kind"]) for entry in cli.json("ls")] == [
        ("base", "committed"),
        ("web", "active"),
    ]
    assert cli("changes", "web").lines == ["D /gone"]
    path = Path(cli("mount", "web").lines[0])
    assert [entry.name for entry in path.iterdir()] == ["kept"]
    cli("umount", "web")
    assert cli("--format", "json", "migrate", str(go_root), code=2).error["code"] == "root.not_go"


@pytest.mark.lane("overlay")
def test_fstab_lines_are_printed_and_left_alone(cli: Cli, go_root: Path, tmp_path: Path) -> None:
    line = f"{go_root}/containers_quota/web.ext4 {go_root}/diff/web ext4 loop 0 0"
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    fstab = tmp_path / "upper/fstab"
    fstab.write_text(f"# disks\n/dev/sda1 / ext4 defaults 0 1\n{line}\n")
    before = fstab.read_bytes()
    script = (
        'mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" none /etc; shift; exec "$@"'
    )
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(tmp_path)]
    command += cli.command("migrate", str(go_root))
    done = subprocess.run(command, env=cli.environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{line}\n"
    assert "delete these lines from /etc/fstab" in done.stderr
    assert fstab.read_bytes() == before


def test_what_is_no_root_of_the_go_driver(cli: Cli, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli("--format", "json", "migrate", str(empty), code=2).error["code"] == "root.not_go"
    assert list(empty.iterdir()) == []
    cli("migrate", str(empty), "--owner-shift", "-1", code=2)


def test_owners_are_shifted_back(cli: Cli, go_root: Path) -> None:
    import os

    os.chown(go_root / "diff/base/kept", 100033, 100000)
    done = json.loads(cli("--format", "json", "migrate", str(go_root), "--owner-shift", "100000").out)
    assert done["layers"] == ["base", "web"]
    status = (go_root / "diff/base/kept").stat()
    assert (status.st_uid, status.st_gid) == (33, 0)
    Driver(go_root).cleanup()
