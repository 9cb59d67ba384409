"""``layerlimit serve`` in a process of its own, and a client of it that speaks gRPC over its socket."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from layerlimit.containerd.wire import health_pb2, mount_pb2
from layerlimit.containerd.wire import snapshots_pb2 as wire
from layerlimit.driver import Driver

NAME = "layerlimit"
MIB = 1 << 20


class Refused(Exception):
    """A call's status."""

    def __init__(self, error: Any) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code: str = error.code().name
        self.text: str = error.details()


@dataclass
class Daemon:
    """The daemon over ``directory / "root"``; one that ended can be started again."""

    directory: Path
    options: Sequence[str] = (f"--snapshotter={NAME}", "--snapshotter=small=16MiB")
    process: subprocess.Popen[str] = field(init=False)
    channel: grpc.Channel = field(init=False)

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def socket(self) -> Path:
        return self.directory / "s"

    def command(self) -> list[str]:
        line = [sys.executable, "-m", "layerlimit", "--root", str(self.root), "serve"]
        return [*line, "--address", str(self.socket), *self.options]

    def start(self) -> Daemon:
        with open(self.directory / "log", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command(), stderr=log, text=True)
        self.channel = grpc.insecure_channel(
            f"unix:{self.socket}", options=[("grpc.max_reconnect_backoff_ms", 50)]
        )
        grpc.channel_ready_future(self.channel).result(timeout=60)
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        self.channel.close()
        self.process.send_signal(number)
        return self.process.wait(60)

    def call(self, method: str, request: Any, answer: Any = Empty, *, service: str = "") -> Any:
        path = f"/{service or 'containerd.services.snapshots.v1.Snapshots'}/{method}"
        one = self.channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        try:
            return one(request, timeout=60)
        except grpc.RpcError as error:
            raise Refused(error) from None

    def healthy(self, service: str = "") -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = self.call("Check", request, health_pb2.HealthCheckResponse, service="grpc.health.v1.Health")
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def of(self, name: str = NAME) -> Client:
        return Client(self, name)

    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Client:
    """The calls, as one name of the daemon."""

    daemon: Daemon
    name: str

    def prepare(self, key: str, parent: str = "", **labels: str) -> list[mount_pb2.Mount]:
        return self.prepare_with(key, parent, labels)

    def prepare_with(self, key: str, parent: str, labels: Mapping[str, str]) -> list[mount_pb2.Mount]:
        request = wire.PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=labels)
        return list(self.daemon.call("Prepare", request, wire.PrepareSnapshotResponse).mounts)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[mount_pb2.Mount]:
        request = wire.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=labels)
        return list(self.daemon.call("View", request, wire.ViewSnapshotResponse).mounts)

    def mounts(self, key: str) -> list[mount_pb2.Mount]:
        request = wire.MountsRequest(snapshotter=self.name, key=key)
        return list(self.daemon.call("Mounts", request, wire.MountsResponse).mounts)

    def commit(self, name: str, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> None:
        self.daemon.call(
            "Commit",
            wire.CommitSnapshotRequest(
                snapshotter=self.name, name=name, key=key, parent=parent, labels=labels
            ),
        )

    def remove(self, key: str) -> None:
        self.daemon.call("Remove", wire.RemoveSnapshotRequest(snapshotter=self.name, key=key))

    def stat(self, key: str) -> wire.Info:
        request = wire.StatSnapshotRequest(snapshotter=self.name, key=key)
        info: wire.Info = self.daemon.call("Stat", request, wire.StatSnapshotResponse).info
        return info

    def update(self, key: str, labels: Mapping[str, str], *mask: str, **fields: Any) -> wire.Info:
        request = wire.UpdateSnapshotRequest(snapshotter=self.name)
        request.info.CopyFrom(wire.Info(name=key, labels=labels, **fields))
        request.update_mask.paths.extend(mask)
        info: wire.Info = self.daemon.call("Update", request, wire.UpdateSnapshotResponse).info
        return info

    def blocks(self, *filters: str) -> Iterator[list[wire.Info]]:
        stream = self.daemon.channel.unary_stream(
            "/containerd.services.snapshots.v1.Snapshots/List",
            request_serializer=wire.ListSnapshotsRequest.SerializeToString,
            response_deserializer=wire.ListSnapshotsResponse.FromString,
        )
        try:
            for message in stream(wire.ListSnapshotsRequest(snapshotter=self.name, filters=filters)):
                yield list(message.info)
        except grpc.RpcError as error:
            raise Refused(error) from None

    def names(self, *filters: str) -> set[str]:
        return {info.name for block in self.blocks(*filters) for info in block}

    def usage(self, key: str) -> tuple[int, int]:
        request = wire.UsageRequest(snapshotter=self.name, key=key)
        answer = self.daemon.call("Usage", request, wire.UsageResponse)
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self.daemon.call("Cleanup", wire.CleanupRequest(snapshotter=self.name))

    def layer(self, name: str, parent: str = "") -> None:
        """A committed snapshot."""
        self.prepare(f"{name}-key", parent)
        self.commit(name, f"{name}-key")


def mount(mounts: Sequence[mount_pb2.Mount], target: Path) -> None:
    """What containerd does with the answer."""
    target.mkdir(exist_ok=True)
    for each in mounts:
        options = ",".join(each.options)
        line = ["mount", "-t", each.type, "-o", options, each.source, str(target)]
        if each.type == "bind":
            line = [
                "mount",
                "--rbind",
                "-o",
                "ro" if "ro" in each.options else "rw",
                each.source,
                str(target),
            ]
        subprocess.run(line, check=True)


def unmount(target: Path) -> None:
    subprocess.run(["umount", str(target)], check=True)


def awaited(what: str, holds: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)


def clear(root: Path) -> None:
    """Unmount what the daemon leaves mounted on purpose."""
    if (root / "format").exists():
        driver = Driver(root)
        driver.cleanup()
        driver.close()
