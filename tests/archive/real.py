"""Real layers: a Debian root file system, an npm tree of 25,000 files, and an upgrade of that tree.

They are made once and kept below ``.cache`` of the checkout, as tars of GNU tar:

    rootfs/…                see scripts/rootfs
    containerd/             Debian's package containerd, unpacked
    layers/lock             held while something is made
    layers/npm.tar          node_modules of some well-known packages
    layers/upgrade.tar      upper directory of an overlay in which npm exchanged some of them and the
                            type declarations went, whiteouts and trusted attributes as they lie on disk
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.archive import layers

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"

_BEFORE = {
    "@mui/material": "5.16.7",
    "core-js": "3.37.1",
    "date-fns": "3.6.0",
    "lodash": "4.17.21",
    "next": "14.2.5",
    "react": "18.3.1",
    "react-dom": "18.3.1",
    "rxjs": "7.8.1",
}
_AFTER = {
    "@mui/material": "5.16.7",
    "core-js": "3.37.1",
    "date-fns": "2.30.0",
    "next": "14.2.15",
    "react": "18.3.1",
    "react-dom": "18.3.1",
    "rxjs": "7.8.1",
}


@dataclass(frozen=True)
class Npm:
    """The two layers of the npm tree."""

    base: Path
    upgrade: Path


def debian() -> Path:
    """A tar of a Debian root file system."""
    made = subprocess.run([ROOT / "scripts/rootfs"], check=True, capture_output=True, text=True)
    return Path(made.stdout.strip())


def npm() -> Npm:
    """Tars of the npm tree and of the upper directory of its upgrade."""
    directory = CACHE / "layers"
    directory.mkdir(parents=True, exist_ok=True)
    found = Npm(base=directory / "npm.tar", upgrade=directory / "upgrade.tar")
    with (directory / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.upgrade.exists():
            with tempfile.TemporaryDirectory(dir=directory) as work:
                _make_npm(Path(work), found)
    return found


def debian_containerd() -> Path | None:
    """The directory of the programs in Debian's package containerd, which need not be installed.

    None where there is no apt.
    """
    directory = CACHE / "containerd"
    if not (directory / "usr/bin/ctr").exists():
        if not shutil.which("apt-get"):
            return None
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            Path(work).chmod(0o755)
            # Without a sandbox of its own, apt needs no user that may write here.
            command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "containerd"]
            subprocess.run(command, cwd=work, check=True, capture_output=True)
            [package] = Path(work).glob("containerd_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, f"{work}/unpacked"], check=True)
            Path(work, "unpacked").rename(directory)
    return directory / "usr/bin"


def unpack(archive: Path, target: Path) -> None:
    """Extract a tar of this module into the existing directory ``target``, by GNU tar."""
    everything = ["--xattrs", "--xattrs-include=*", "--numeric-owner"]
    subprocess.run(["tar", *everything, "-xpf", archive, "-C", target], check=True)


def _make_npm(work: Path, made: Npm) -> None:
    base = work / "base"
    base.mkdir()
    _install(base, _BEFORE, work / "cache")
    with layers.overlay(work, [base]) as (merged, upper):
        _install(merged, _AFTER, work / "cache")
        for declaration in (merged / "node_modules").rglob("*.d.ts"):  # as image builders prune
            declaration.unlink()
        _pack(upper, made.upgrade.with_suffix(".new"))
    _pack(base, made.base.with_suffix(".new"))
    made.base.with_suffix(".new").rename(made.base)
    made.upgrade.with_suffix(".new").rename(made.upgrade)


def _install(tree: Path, packages: Mapping[str, str], cache: Path) -> None:
    manifest = {"name": "tree", "version": "1.0.0", "private": True, "dependencies": dict(packages)}
    (tree / "package.json").write_text(json.dumps(manifest, indent=2))
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--no-package-lock"]
    command = ["npm", "install", *quiet, "--legacy-peer-deps", "--cache", os.fspath(cache)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)


def _pack(tree: Path, archive: Path) -> None:
    everything = ["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name"]
    subprocess.run(["tar", *everything, "-cf", archive, "-C", tree, "."], check=True)
