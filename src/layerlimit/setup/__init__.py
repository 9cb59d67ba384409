"""Telling containerd and Docker of the daemon: edits of their files that can be seen and undone."""

from layerlimit.setup.containerd import Engine, Stanzas, set_up_containerd, undo_containerd
from layerlimit.setup.docker import set_up_docker, undo_docker
from layerlimit.setup.edit import Edit, apply_edit, read_text
from layerlimit.setup.version import containerd_version

__all__ = [
    "Edit",
    "Engine",
    "Stanzas",
    "apply_edit",
    "containerd_version",
    "read_text",
    "set_up_containerd",
    "set_up_docker",
    "undo_containerd",
    "undo_docker",
]
