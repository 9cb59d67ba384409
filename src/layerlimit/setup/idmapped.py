"""Whether this kernel's overlay takes layers whose owners a mount maps (Linux 5.19): found by trying.

Without it containerd must not be told ``remap-ids``: it would leave the mapping to mounts that cannot do it,
instead of changing the owners of a copy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from layerlimit.linux.mount import (
    MOUNT_ATTR_IDMAP,
    MS_SLAVE,
    FsContext,
    clone_tree,
    set_attributes,
    set_propagation,
)
from layerlimit.linux.namespaces import CLONE_NEWNS, CLONE_NEWUSER, unshare
from layerlimit.linux.process import die_with_parent

_MAP = "0 100000 65536"


def takes_mapped_layers(root: Path) -> bool:
    """Whether it does over the file system of ``root``, which need not be there yet.

    A child tries in a mount namespace of its own: forking would be wrong where there are threads.
    """
    place = next(path for path in (root, *root.parents) if path.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".layerlimit-") as scratch:
            line = [sys.executable, "-m", "layerlimit.setup.idmapped", scratch]
            return subprocess.run(line, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _try(scratch: Path) -> None:
    unshare(CLONE_NEWNS)
    set_propagation("/", MS_SLAVE, recursive=True)
    for name in ("lower", "mapped", "upper", "work"):
        (scratch / name).mkdir()
    with clone_tree(scratch / "lower") as tree:
        set_attributes(tree.fd, set_=MOUNT_ATTR_IDMAP, user_namespace=_user_namespace())
        tree.attach(scratch / "mapped")
    with FsContext("overlay") as overlay:
        for key, name in (("lowerdir", "mapped"), ("upperdir", "upper"), ("workdir", "work")):
            overlay.set_string(key, scratch / name)
        overlay.create()


def _user_namespace() -> int:
    """The descriptor of a user namespace with a mapping, which no process is in any more."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent(signal.SIGKILL)
            unshare(CLONE_NEWUSER)
            os.write(tell, b"1")
            signal.pause()
        finally:
            os._exit(0)
    os.close(tell)
    try:
        os.read(ready, 1)  # nothing: it could not, and what follows fails
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(_MAP)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    _try(Path(sys.argv[1]))
