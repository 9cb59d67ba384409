"""The engines of ``.cache/engines`` in an island: every path their own, no network."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from layerlimit.setup import Stanzas, set_up_containerd
from tests.engines.island import Daemon, Island, awaited

CACHE = Path(__file__).parents[2] / ".cache/engines"
BUILT, DEBIAN = CACHE / "bin", CACHE / "debian"
OLDER = CACHE.parent / "older-engines"


def environment(programs: Path) -> dict[str, str]:
    """With an engine's own programs first on the path: it finds its shim and runc there."""
    return {"PATH": f"{programs}:{BUILT}:{os.environ['PATH']}"}


def version(program: Path) -> str:
    """What a program says of its version, the number alone."""
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    words = said.replace(",", " ").split()
    return next(word for word in words if word.lstrip("v")[:1].isdigit()).lstrip("v")


# -- containerd ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Release:
    """One containerd: where its programs are and which format its configuration has."""

    name: str
    programs: Path
    config: int

    @property
    def version(self) -> str:
        return version(self.programs / "containerd").partition("~")[0].partition("+")[0]

    @property
    def numbers(self) -> tuple[int, int]:
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)


DEBIANS = Release("debian", DEBIAN, 2)
CURRENT = Release("current", BUILT, 3)
BETWEEN = tuple(Release(name, OLDER / name, config) for name, config in (("1.7", 2), ("2.0", 3), ("2.3", 3)))
#: For a fixture: the oldest and the newest, and between them those that scripts/older-engines builds.
RELEASES = [
    pytest.param(release, id=release.name, marks=[pytest.mark.long] if release in BETWEEN else [])
    for release in (DEBIANS, *BETWEEN, CURRENT)
]


def _common(release: Release, directory: Path) -> str:
    disabled = ["io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
    if release.config > 2:
        disabled.append("io.containerd.nri.v1.nri")
    return f"""
version = {release.config}
root = "{directory}/containerd"
state = "{directory}/state"
disabled_plugins = {json.dumps(disabled)}
[grpc]
  address = "{directory}/ctd.sock"
"""


_RUNTIME = """
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
"""


def _cri(release: Release, default: str, handlers: Sequence[str], cni: Path) -> str:
    if release.config == 2:
        return '[plugins."io.containerd.grpc.v1.cri"]\n  restrict_oom_score_adj = true\n'
    programs = f'bin_dirs = ["{cni}"]' if release.numbers > (2, 0) else f'bin_dir = "{cni}"'
    lines = [
        f'[plugins."io.containerd.cri.v1.images"]\n  snapshotter = "{default}"\n',
        '[plugins."io.containerd.cri.v1.images".pinned_images]\n  sandbox = "localhost/pause:1"\n',
        '[plugins."io.containerd.cri.v1.runtime"]\n  restrict_oom_score_adj = true\n',
        f'[plugins."io.containerd.cri.v1.runtime".cni]\n  {programs}\n  conf_dir = "{cni}"\n',
        _RUNTIME.format(name="runc"),
    ]
    for name in handlers:
        lines += [
            f'[plugins."io.containerd.cri.v1.images".runtime_platforms.{name}]\n',
            f'  platform = "linux/amd64"\n  snapshotter = "{name}"\n',
            _RUNTIME.format(name=name),
            f'  snapshotter = "{name}"\n  pod_annotations = ["layerlimit/*", "containerd.io/snapshot/*"]\n',
        ]
    return "".join(lines)


@dataclass
class Containerd:
    """A containerd, told of the snapshotters ``names`` behind ``socket`` as ``layerlimit setup`` does it.

    ``differ`` has images unpacked by ours, too; without ``remap_ids`` it changes owners itself. ``more`` is
    put into its configuration.
    """

    island: Island
    release: Release
    names: Sequence[str] = ()
    socket: Path | None = None
    differ: bool = False
    handlers: Sequence[str] = ()
    remap_ids: bool = True
    more: str = ""
    daemon: Daemon = field(init=False)

    @property
    def address(self) -> Path:
        # Short: containerd adds ".ttrpc", and a socket's path has 104 bytes.
        return self.island.directory / "ctd.sock"

    def start(self) -> Containerd:
        directory = self.island.directory
        config = directory / "containerd.toml"
        text = (
            _common(self.release, directory)
            + _cri(self.release, "overlayfs", self.handlers, directory / "cni")
            + self.more
        )
        if self.socket:
            stanzas = Stanzas(
                tuple(self.names),
                str(self.socket),
                str(directory / "layerlimit"),
                differ=self.differ,
                remap_ids=self.remap_ids,
            )
            text = set_up_containerd(config, text, stanzas, installed=self.release.numbers).after
        config.write_text(text, encoding="utf-8")
        program = self.release.programs / "containerd"
        self.daemon = self.island.start(
            "containerd", program, "--config", config, environment=environment(self.release.programs)
        )
        awaited("containerd to answer", self._answers)
        return self

    def _answers(self) -> bool:
        assert self.daemon.running(), f"containerd ended:\n{self.daemon.tail()}"
        return self.ctr("version", check=False).returncode == 0

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.daemon.end(number)
        self.start()

    def ctr(
        self, *arguments: str | Path, check: bool = True, seconds: float = 60, namespace: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """``ctr``; its namespace is the island's, and so are the control groups of what it runs."""
        line: list[str | Path] = [self.release.programs / "ctr", "--address", self.address]
        return self.island.run(
            *line,
            *("--namespace", namespace or self.island.cgroup),
            *arguments,
            check=check,
            seconds=seconds,
            environment=environment(self.release.programs),
        )

    def load(self, archive: Path, snapshotter: str) -> None:
        self.ctr("images", "import", "--snapshotter", snapshotter, archive)

    def run(
        self, id: str, image: str, *command: str, snapshotter: str, options: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Runs a container to its end, and removes it."""
        where = ["--snapshotter", snapshotter, *options]
        return self.ctr("run", "--rm", *where, image, id, *command, check=False)

    def start_container(self, id: str, image: str, *, snapshotter: str, options: Sequence[str] = ()) -> None:
        """Leaves a container running that does nothing."""
        where = ["--snapshotter", snapshotter, *options]
        self.ctr("run", "--detach", "--null-io", *where, image, id, "/bin/sleep", "3600")

    def sh(self, id: str, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a shell script in a running container."""
        name = f"x{os.urandom(4).hex()}"
        return self.ctr("tasks", "exec", "--exec-id", name, id, "/bin/sh", "-c", script, check=check)

    def remove_container(self, id: str) -> None:
        self.ctr("tasks", "kill", "--signal", "SIGKILL", id, check=False)
        self.ctr("tasks", "delete", "--force", id, check=False)
        self.ctr("containers", "delete", id)

    def reach(self, snapshotter: str) -> None:
        """Waits until it calls a snapshotter that is back: its connection tries again every few seconds."""
        make = ("snapshots", "--snapshotter", snapshotter, "prepare", "reached")
        awaited("containerd to connect again", lambda: self.ctr(*make, check=False).returncode == 0)
        self.ctr("snapshots", "--snapshotter", snapshotter, "rm", "reached")

    def snapshots(self, snapshotter: str) -> dict[str, str]:
        """Keys and kinds, as containerd knows them."""
        rows = self.ctr("snapshots", "--snapshotter", snapshotter, "ls").stdout.splitlines()[1:]
        # A key may hold spaces, and the parent may be missing.
        return {row.split()[0]: row.split()[-1] for row in rows}


# -- layerlimit ---------------------------------------------------------------------------------------


@dataclass
class Snapshotter:
    """``layerlimit serve`` over a root below the island's directory."""

    island: Island
    names: Sequence[str] = ("layerlimit",)
    options: Sequence[str | Path] = ()
    daemon: Daemon = field(init=False)

    @property
    def root(self) -> Path:
        return self.island.directory / "layerlimit"

    @property
    def socket(self) -> Path:
        return self.island.directory / "layerlimit.sock"

    def start(self) -> Snapshotter:
        named: list[str | Path] = [word for name in self.names for word in ("--snapshotter", name)]
        line: list[str | Path] = [
            sys.executable,
            "-m",
            "layerlimit",
            "--root",
            self.root,
            "serve",
            "--address",
            self.socket,
        ]
        self.daemon = self.island.start("layerlimit", *line, *named, *self.options)
        awaited("layerlimit to listen", self._listens)
        return self

    def _listens(self) -> bool:
        assert self.daemon.running(), f"layerlimit ended:\n{self.daemon.tail()}"
        listening = Path(f"/proc/{self.island.init}/net/unix").read_text()
        # A socket file may be a dead daemon's; the kernel's table says who accepts.
        return any(
            line.endswith(f" {self.socket}") and " 00010000 " in line for line in listening.splitlines()
        )

    def calls(self, rpc: str) -> int:
        """How many calls of ``rpc`` succeeded, by the log of all daemons that there were."""
        lines = (self.island.directory / "layerlimit.log").read_text(errors="replace").splitlines()
        return sum(f'"rpc": "{rpc}"' in line and '"code": "OK"' in line for line in lines)

    def cli(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        line: list[str | Path] = [sys.executable, "-m", "layerlimit", "--root", self.root]
        return self.island.run(*line, *arguments, check=check)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.daemon.end(number)
        self.start()


# -- Docker and a registry ----------------------------------------------------------------------------


@dataclass
class Docker:
    """dockerd over a containerd of the tests, with one snapshotter for all containers."""

    island: Island
    containerd: Containerd
    snapshotter: str
    live_restore: bool = False
    daemon: Daemon = field(init=False)

    @property
    def data_root(self) -> Path:
        return self.island.directory / "docker"

    def start(self) -> Docker:
        directory = self.island.directory
        config = directory / "daemon.json"
        wanted = {"storage-driver": self.snapshotter, "features": {"containerd-snapshotter": True}}
        config.write_text(json.dumps(wanted), encoding="utf-8")
        self.daemon = self.island.start(
            "dockerd",
            *(BUILT / "dockerd", "--config-file", config, "--containerd", self.containerd.address),
            *("--data-root", self.data_root, "--exec-root", directory / "exec"),
            *("-H", f"unix://{directory}/docker.sock", "--pidfile", directory / "docker.pid"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false"),
            f"--cgroup-parent={self.island.cgroup}",
            *(["--live-restore"] if self.live_restore else []),
            environment=environment(BUILT),
        )
        awaited("dockerd to answer", self._answers)
        return self

    def _answers(self) -> bool:
        assert self.daemon.running(), f"dockerd ended:\n{self.daemon.tail()}"
        return self("version", check=False).returncode == 0

    def __call__(
        self, *arguments: str | Path, check: bool = True, seconds: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """The ``docker`` client."""
        directory = self.island.directory
        line: list[str | Path] = [
            BUILT / "docker",
            "--config",
            directory / "client",
            "-H",
            f"unix://{directory}/docker.sock",
        ]
        # The classic builder is what docker build falls back to without the plug-in buildx.
        return self.island.run(
            *line, *arguments, check=check, seconds=seconds, environment={"DOCKER_BUILDKIT": "0"}
        )

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.daemon.end(number)
        if number == signal.SIGKILL:
            (self.island.directory / "docker.pid").unlink(missing_ok=True)
        self.start()


def unused_port() -> int:
    """A port of the loopback interface that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def registry(island: Island, port: int) -> Daemon:
    """A registry on the loopback interface that keeps its blobs in the island's directory."""
    config = island.directory / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(island.directory / "registry")}}
    wanted = {"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}
    config.write_text(json.dumps(wanted), encoding="utf-8")  # JSON is YAML
    daemon = island.start("registry", BUILT / "registry", "serve", config)
    listening = f" 0100007F:{port:04X} 00000000:0000 0A "
    awaited("the registry to listen", lambda: listening in Path("/proc/net/tcp").read_text())
    return daemon
