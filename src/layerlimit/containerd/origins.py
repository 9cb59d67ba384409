"""Where a container says what limit it wants: Docker's own file of it, or containerd's record of it.

Both are there once a container is about to start, and not before: neither knows a container that is being
created. What cannot be read although it must be there is an error: the limit would be a guess.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import msgspec

from layerlimit.containerd.asked import Asked, read_asked, read_size
from layerlimit.containerd.keys import Key
from layerlimit.containerd.wire import containers_pb2 as containers
from layerlimit.errors import Busy, Corrupt, InvalidArgument, from_os_error

_CRI_CONTAINER: Final = "io.cri-containerd.container.metadata"
_CRI_SANDBOX: Final = "io.cri-containerd.sandbox.metadata"
_SECONDS: Final = 5.0

T = TypeVar("T")


class _HostConfig(msgspec.Struct):
    StorageOpt: dict[str, str] | None = None


class _Config(msgspec.Struct):
    annotations: dict[str, str] | None = None


class _Metadata(msgspec.Struct):
    SandboxID: str = ""
    Config: _Config | None = None


class _Versioned(msgspec.Struct):
    Metadata: _Metadata


class _Spec(msgspec.Struct):
    annotations: dict[str, str] | None = None


class Docker:
    """Containers of the Docker daemon whose data root is ``root``."""

    def __init__(self, root: Path) -> None:
        self._containers = root / "containers"

    def asked(self, id: str) -> Asked:
        """What ``docker run --storage-opt`` said. Nothing in the moment between create and the file.

        Docker writes the file in one piece before the container can be started.
        """
        directory = self._containers / id
        try:
            raw = (directory / "hostconfig.json").read_bytes()
        except FileNotFoundError:
            if directory.is_dir():
                return Asked()
            raise InvalidArgument(
                f"Docker keeps nothing of container {id} in {directory}",
                hint="give Docker's data root with --docker-root, or docker_root in the configuration",
                code="docker.root",
            ) from None
        except OSError as error:
            raise from_os_error(error, f"read what Docker keeps of container {id}") from error
        options = _decode(raw, _HostConfig, f"what Docker keeps of container {id}").StorageOpt or {}
        unknown = sorted(key for key in options if key.lower() != "size")
        if unknown:
            raise InvalidArgument(
                f"--storage-opt {unknown[0]}={options[unknown[0]]}: there is no such option",
                hint="--storage-opt size=10g is what there is",
                code="limit.invalid",
            )
        for key, value in options.items():
            return Asked(read_size(value, f"--storage-opt {key}"))
        return Asked()


class Containerd:
    """Containers of the containerd that listens at ``address``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._calling: Any = None

    def close(self) -> None:
        """Close the connection; the next question opens one."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def asked(self, key: Key) -> list[Asked]:
        """What a container asks for, then what its pod does; nothing of one that is not recorded yet.

        Of a container of CRI it is the annotations that count, as its labels may be its image's.
        """
        found = self._get(key.namespace, key.client)
        if found is None:
            return []
        about = f"what containerd keeps of container {key.client}"
        if _CRI_SANDBOX in found.extensions:
            pod = _metadata(found, _CRI_SANDBOX, about)
            return [_annotations(pod, "annotation")]
        if _CRI_CONTAINER in found.extensions:
            container = _metadata(found, _CRI_CONTAINER, about)
            asked = [_annotations(container, "annotation")]
            sandbox = self._get(key.namespace, container.SandboxID)
            if sandbox is not None and _CRI_SANDBOX in sandbox.extensions:
                asked.append(_annotations(_metadata(sandbox, _CRI_SANDBOX, about), "pod's annotation"))
            return asked
        spec = _decode(found.spec.value, _Spec, about).annotations if found.spec.value else None
        return [read_asked(found.labels), read_asked(spec or {}, "annotation")]

    def _get(self, namespace: str, id: str) -> containers.Container | None:
        try:
            answer = self._call()(
                containers.GetContainerRequest(id=id),
                metadata=(("containerd-namespace", namespace),),
                timeout=_SECONDS,
            )
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.NOT_FOUND:
                return None
            raise Busy(
                f"containerd at {self._address} does not say what limit container {id} asks for: {code.name}",
                hint="give the address of its socket with --containerd, or containerd in the configuration",
                code="containerd.silent",
            ) from error
        found: containers.Container = answer.container
        return found

    def _call(self) -> Any:
        with self._lock:
            if self._channel is None:
                # Without a ceiling, a channel that failed once waits up to two minutes to try again.
                options = (("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_http_proxy", 0))
                self._channel = grpc.insecure_channel(f"unix:{self._address}", options=options)
                self._calling = self._channel.unary_unary(
                    "/containerd.services.containers.v1.Containers/Get",
                    request_serializer=containers.GetContainerRequest.SerializeToString,
                    response_deserializer=containers.GetContainerResponse.FromString,
                )
            return self._calling


def _metadata(container: containers.Container, name: str, about: str) -> _Metadata:
    return _decode(container.extensions[name].value, _Versioned, about).Metadata


def _annotations(found: _Metadata, where: str) -> Asked:
    annotations: Mapping[str, str] = (found.Config.annotations if found.Config else None) or {}
    return read_asked(annotations, where)


def _decode(raw: bytes, type: type[T], about: str) -> T:
    try:
        return msgspec.json.decode(raw, type=type)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{about} is not as expected: {error}", code="origin.format") from error
