"""Turning a branch that AUFS wrote into an overlay upper, in place.

Every step is repeatable: the new form is made before the old marker goes, so an interrupted conversion is
finished by running it again. Sources: AUFS manual, "Whiteout"; Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from layerlimit.linux import xattr

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
METADATA = ".wh..wh."
_OVERLAY_OPAQUE = b"trusted.overlay.opaque"
_CAPABILITY = b"security.capability"


def convert(branch: Path, *, shift: int = 0) -> int:
    """Convert the tree at ``branch`` and return how many markers it had; ``shift`` is taken from owners.

    Ids at or above ``shift`` are lowered by it, which undoes a user-namespace shift once and only once.
    """
    markers = 0
    for where, directories, names, directory in os.fwalk(branch, follow_symlinks=False):
        if where == str(branch):
            _drop_metadata(branch, directories)
        for name in list(names):
            if name == OPAQUE:
                xattr.set_xattr(directory, _OVERLAY_OPAQUE, b"y")
                os.unlink(name, dir_fd=directory)
                markers += 1
            elif name.startswith(METADATA):
                os.unlink(name, dir_fd=directory)
            elif name.startswith(WHITEOUT):
                _whiteout(directory, name)
                markers += 1
            elif shift:
                _shift(directory, name, shift)
        if shift:
            _shift(directory, ".", shift)
    return markers


def _drop_metadata(branch: Path, directories: list[str]) -> None:
    for name in [name for name in directories if name.startswith(METADATA)]:
        shutil.rmtree(branch / name)
        directories.remove(name)


def _whiteout(directory: int, name: str) -> None:
    hidden = name.removeprefix(WHITEOUT)
    try:
        os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory)
    except FileExistsError:
        pass  # made by an interrupted run; AUFS never leaves a marker beside the name it hides
    os.unlink(name, dir_fd=directory)


def _shift(directory: int, name: str, shift: int) -> None:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    uid = status.st_uid - shift if status.st_uid >= shift else status.st_uid
    gid = status.st_gid - shift if status.st_gid >= shift else status.st_gid
    if (uid, gid) == (status.st_uid, status.st_gid):
        return
    path = xattr.entry_path(directory, os.fsencode(name))
    capability = xattr.find_xattr(path, _CAPABILITY)
    os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):  # chown took setuid, setgid and capabilities away
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory)
    if capability is not None:
        with contextlib.suppress(FileNotFoundError):
            xattr.set_xattr(path, _CAPABILITY, capability)


def count_markers(branch: Path) -> int:
    """How many whiteouts and opaque markers :func:`convert` would turn; changes nothing."""
    return sum(
        name == OPAQUE or (name.startswith(WHITEOUT) and not name.startswith(METADATA))
        for _, _, names in os.walk(branch)
        for name in names
    )
