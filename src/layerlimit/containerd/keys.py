"""What a key of containerd's says about who asked for a snapshot, and whether it is one to be limited.

A key is ``<namespace>/<number>/<client's key>``. The client's key is the id of a container, or names a step
of unpacking or building, whose content becomes a layer of an image: such a snapshot is not limited. Docker's
and BuildKit's forms count in their own namespaces only, as nobody else chooses keys there; CRI's ids look
like Docker's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_KEY: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)/[0-9]+/(.+)", re.DOTALL)
_DOCKER_ID: Final = re.compile(r"[0-9a-f]{64}")
_BUILDKIT_ID: Final = re.compile(r"[0-9a-z]{25}")
_COPY: Final = re.compile(r"sha256:[0-9a-f]{64}(-[0-9]+-[0-9]+)?-remap")
_INIT: Final = "-init"
DOCKER: Final = "moby"
_BUILDERS: Final = frozenset({DOCKER, "buildkit"})


@dataclass(frozen=True, slots=True)
class Key:
    """``namespace`` is "" and ``client`` the whole key for one that does not come through containerd."""

    namespace: str
    client: str
    parent: str

    @property
    def is_container_of_docker(self) -> bool:
        """A container's own layer in Docker's namespace: it stands on the layer ``<id>-init``."""
        return (
            self.namespace == DOCKER
            and _DOCKER_ID.fullmatch(self.client) is not None
            and self.parent == self.client + _INIT
        )

    @property
    def is_init_of_docker(self) -> bool:
        """What a container of Docker's stands on, while Docker puts a few empty files into it."""
        id = self.client.removesuffix("-init-key")
        return self.namespace == DOCKER and id != self.client and _DOCKER_ID.fullmatch(id) is not None

    @property
    def is_copy_of_image(self) -> bool:
        """An image's files with other owners, for user namespaces. No container's id has a colon."""
        return _COPY.fullmatch(self.client) is not None

    @property
    def is_image_content(self) -> bool:
        """Whether what is written becomes an image, or is thrown away with a build: never limited."""
        if self.client.startswith("extract-") or self.is_copy_of_image:
            return True
        if self.namespace not in _BUILDERS:
            return False
        if _BUILDKIT_ID.fullmatch(self.client):
            return True
        id = self.client.removesuffix("-init-key")
        return (
            self.namespace == DOCKER
            and _DOCKER_ID.fullmatch(id) is not None
            and not self.is_container_of_docker
        )


def read_key(key: str, parent: str) -> Key:
    """The parts of a snapshot's key, with the client's name of its parent."""
    return Key(*_parts(key), _parts(parent)[1])


def _parts(key: str) -> tuple[str, str]:
    match = _KEY.fullmatch(key)
    return (match[1], match[2]) if match else ("", key)
