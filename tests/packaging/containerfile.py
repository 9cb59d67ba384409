"""Builds packaging/kubernetes/Containerfile without a registry: its steps in a chroot.

``FROM`` stands for a Debian by debootstrap whose own Python has the names that the official image gives it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
# How this machine reaches Debian's packages and PyPI.
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
ACCESS = ("etc/apt", "etc/pip.conf", "etc/resolv.conf", "usr/local/share/ca-certificates", CERTIFICATES)
BASE = """
apt-get update -q
apt-get install -qy --no-install-recommends python3 python3-dev python3-venv
python3 -m venv /usr/local
"""


def build(containerfile: Path, root: Path) -> list[str]:
    """Fills the empty directory ``root``; what the image starts."""
    tar = subprocess.run([CHECKOUT / "scripts/rootfs"], check=True, capture_output=True, text=True).stdout
    subprocess.run(["tar", "-xf", tar.strip(), "-C", root], check=True)
    for name in ACCESS:
        _copy(Path("/", name), root / name)
    _run(root, BASE)
    entry: list[str] = []
    for instruction, argument in _instructions(containerfile.read_text(encoding="utf-8")):
        if instruction == "COPY":
            *sources, target = argument.split()
            for source in sources:
                to = root / target.lstrip("/")
                _copy(CHECKOUT / source, to / source if target.endswith("/") else to)
        elif instruction == "RUN":
            _run(root, argument)
        elif instruction == "ENTRYPOINT":
            entry = json.loads(argument)
        else:
            assert instruction in ("FROM", "CMD"), instruction
    return entry


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if line and not line.startswith("#"))
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        instruction, _, argument = line.partition(" ")
        yield instruction, argument


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        shutil.copy(source, target)


def _run(root: Path, script: str) -> None:
    """With /proc and /dev, in namespaces that end with it."""
    separate = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    mounts = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev"
    line = [*separate, "sh", "-ec", f'{mounts} && exec chroot {root} sh -ec "$1"', "sh", script]
    environment = {
        **os.environ,
        "DEBIAN_FRONTEND": "noninteractive",
        "PATH": "/usr/local/bin:/usr/sbin:/usr/bin",
    }
    # Not below the checkout's own scratch directory, which the chroot does not have.
    environment.pop("TMPDIR", None)
    done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
