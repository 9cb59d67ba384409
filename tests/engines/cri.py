"""A client of CRI, as small as the tests allow.

The field numbers are those of ``k8s.io/cri-api/pkg/apis/runtime/v1/api.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.engines.wire import decode, encode

_NODE = 2  # NamespaceMode: the host's network, for which no CNI plug-in is needed


@dataclass
class Pods:
    """Pods with one container each: on the node's network, or with users of their own."""

    channel: grpc.Channel
    cgroup: str
    host_root: int = 0  # whom root of a pod with users of its own is outside

    @property
    def _namespaces(self) -> Mapping[int, object]:
        if not self.host_root:
            return {1: _NODE}
        ids = {1: self.host_root, 3: 65536}
        return {5: {2: ids, 3: ids}}

    def _call(
        self, method: str, request: Mapping[int, object], *, seconds: float = 30
    ) -> dict[int, bytes | int]:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}"
        )
        return decode(call(encode(request), timeout=seconds))

    def _config(self, name: str, annotations: dict[str, str]) -> Mapping[int, object]:
        security = {1: self._namespaces}
        described = {7: annotations} if annotations else {}
        return {1: {1: name, 2: name, 3: "default"}, **described, 8: {1: f"/{self.cgroup}", 2: security}}

    def ready(self) -> bool:
        try:
            self._call("Version", {})
        except grpc.RpcError:
            return False
        return True

    def run(self, name: str, handler: str, annotations: dict[str, str] | None = None) -> str:
        """RunPodSandbox; the sandbox's id."""
        answer = self._call("RunPodSandbox", {1: self._config(name, annotations or {}), 2: handler})
        return _text(answer[1])

    def start(self, sandbox: str, name: str, image: str, annotations: dict[str, str] | None = None) -> str:
        """CreateContainer and StartContainer of one that does nothing; its id. ``name`` is the pod's too."""
        config: dict[int, object] = {1: {1: name}, 2: {1: image}, 3: ["/bin/sleep", "3600"]}
        config[15] = {2: {3: self._namespaces}}
        if annotations:
            config[10] = annotations
        answer = self._call("CreateContainer", {1: sandbox, 2: config, 3: self._config(name, {})})
        container = _text(answer[1])
        self._call("StartContainer", {1: container})
        return container

    def sh(self, container: str, script: str) -> tuple[int, str]:
        """ExecSync of a shell script: its exit code and what it printed, errors first."""
        answer = self._call("ExecSync", {1: container, 2: ["/bin/sh", "-c", script], 3: 30})
        code = answer.get(3, 0)
        assert isinstance(code, int)
        return code, _text(answer.get(2, b"")) + _text(answer.get(1, b""))

    def remove(self, sandbox: str) -> None:
        """StopPodSandbox and RemovePodSandbox, with the containers inside."""
        self._call("StopPodSandbox", {1: sandbox})
        self._call("RemovePodSandbox", {1: sandbox})


def _text(value: bytes | int) -> str:
    assert isinstance(value, bytes)
    return value.decode()


@contextmanager
def pods(socket: Path, cgroup: str, host_root: int = 0) -> Iterator[Pods]:
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        yield Pods(channel, cgroup, host_root)
