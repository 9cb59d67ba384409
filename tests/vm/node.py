"""A guest as a node: systemd, the unit of packaging/, a containerd that `layerlimit setup` configured.

Both daemons keep their files on the machine's disk; all else that :meth:`Node.install` writes is gone with
each boot.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from layerlimit.setup import Stanzas, set_up_containerd
from tests.engines import image
from tests.engines.daemons import BUILT
from tests.vm import guest
from tests.vm.machine import CHECKOUT, Machine

PLAIN, SMALL = "layerlimit", "small"
ROOT = "/var/lib/layerlimit"
SOCKET = "/run/layerlimit/layerlimit.sock"

CONFIG = f"""\
[[snapshotters]]
name = "{PLAIN}"
[[snapshotters]]
name = "{SMALL}"
default_limit = "16MiB"
"""

# What decides in the one that containerd comes with.
CONTAINERD = f"""\
[Unit]
After=local-fs.target
[Service]
Type=notify
Environment=PATH={BUILT}:/usr/sbin:/usr/bin
ExecStart={BUILT}/containerd
Delegate=yes
KillMode=process
[Install]
WantedBy=multi-user.target
"""

# In the place of an engine: fails unless the socket answers when it starts.
DOCKER = f"""\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={sys.executable} -I -S -c "import socket; socket.socket(socket.AF_UNIX).connect('{SOCKET}')"
[Install]
WantedBy=multi-user.target
"""

INSTALL = f"""
mkdir -p /etc/layerlimit /etc/containerd /mnt/layerlimit /mnt/containerd {ROOT} /var/lib/containerd
mount --bind /mnt/layerlimit {ROOT}
mount --bind /mnt/containerd /var/lib/containerd
cd /run/share/node
install layerlimit /usr/local/bin/
cp layerlimit.toml /etc/layerlimit/config.toml
cp containerd.toml /etc/containerd/config.toml
cp *.service /etc/systemd/system/
systemctl daemon-reload
systemctl enable --quiet layerlimit containerd docker
"""


@dataclass(frozen=True, slots=True)
class Node:
    """``machine`` runs systemd and has its disk at /mnt."""

    machine: Machine

    def install(self) -> None:
        """Installs everything and starts nothing, as on a node before it boots."""
        share = self.machine.share / "node"
        share.mkdir(exist_ok=True)
        stanzas = Stanzas((PLAIN, SMALL), SOCKET, ROOT)
        containerd = set_up_containerd(Path("config.toml"), None, stanzas, installed=(2, 4))
        package = os.environ.get("PYTHONPATH", "")
        command = f'PYTHONPATH={shlex.quote(package)} exec {sys.executable} -m layerlimit "$@"'
        unit = CHECKOUT / "packaging/systemd/layerlimit.service"
        for name, text in {
            "layerlimit": f"#!/bin/sh\n{command}\n",
            "layerlimit.toml": CONFIG,
            "containerd.toml": containerd.after,
            "layerlimit.service": unit.read_text(encoding="utf-8"),
            "containerd.service": CONTAINERD,
            "docker.service": DOCKER,
        }.items():
            (share / name).write_text(text, encoding="utf-8")
        image.test_image(share)
        self.sh(INSTALL)

    def sh(self, script: str) -> str:
        """Runs a shell script in the guest; what it printed. MachineError when one of its commands fails."""
        path = {"PATH": f"{BUILT}:{os.environ['PATH']}"}
        done = guest.run(self.machine, "sh", "-euc", script, env=path, timeout=300)
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, f"{script}\n{said}"
        return done.stdout.decode()

    def inside(self, container: str, script: str) -> str:
        """Runs a script in a running container, which may fail; what it printed."""
        name = f"x{os.urandom(4).hex()}"
        return self.sh(f"ctr tasks exec --exec-id {name} {container} /bin/sh -c {shlex.quote(script)} 2>&1")

    def mount(self, snapshotter: str, key: str, target: str) -> None:
        """Mounts a snapshot as containerd says."""
        self.sh(f"mkdir -p {target}; ctr snapshots --snapshotter {snapshotter} mounts {target} {key} | sh -e")

    def mounted(self) -> list[str]:
        """What process 1 sees mounted below layerlimit's root."""
        lines = self.sh("cat /proc/1/mountinfo").splitlines()
        return [point for line in lines if (point := line.split()[4]).startswith(f"{ROOT}/")]

    def attached(self) -> list[str]:
        """Its files that loop devices have."""
        attached = self.sh("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true").splitlines()
        return [path for path in attached if path.startswith(f"{ROOT}/")]

    def active(self, *units: str) -> bool:
        return self.sh(f"systemctl is-active {' '.join(units)} || true").split() == ["active"] * len(units)
