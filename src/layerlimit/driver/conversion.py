"""Turning a branch that AUFS wrote into an overlay upper, in place.

Every step is repeatable: the new form is made before the old marker goes, so an interrupted conversion is
finished by running it again. Sources: AUFS manual, "Whiteout"; Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path

from layerlimit.linux import xattr

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
METADATA = ".wh..wh."
SHIFTED = 65536  # ids that a user namespace of the Go driver's time had, from the shift on
_OVERLAY_OPAQUE = b"trusted.overlay.opaque"
_CAPABILITY = b"security.capability"
# What chown(2) is about to take from a file: its permissions and, after a colon, its capabilities.
_KEPT = b"trusted.layerlimit.kept"


def convert(branch: Path, *, shift: int = 0) -> int:
    """Convert the tree at ``branch`` and return how many markers it had; ``shift`` is taken from owners.

    Ids from ``shift`` on, as many as a user namespace had, are lowered by it. That is done once and only
    once however often this runs, as long as ``shift`` is at least :data:`SHIFTED`.
    """
    markers = 0
    for where, directories, names, directory in os.fwalk(branch, follow_symlinks=False):
        before = os.fstat(directory)
        if where == str(branch):
            _drop_metadata(branch, directories)
        for name in names:
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
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
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
    uid, gid = _lower(status.st_uid, shift), _lower(status.st_gid, shift)
    path = xattr.entry_path(directory, os.fsencode(name))
    if (uid, gid) != (status.st_uid, status.st_gid):
        if stat.S_ISREG(status.st_mode):
            capability = xattr.find_xattr(path, _CAPABILITY) or b""
            if capability or status.st_mode & (stat.S_ISUID | stat.S_ISGID):
                kept = b"%o:%b" % (stat.S_IMODE(status.st_mode), _lower_root(capability, shift))
                xattr.set_xattr(path, _KEPT, kept)
        os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return  # chown takes nothing from a directory
    if stat.S_ISREG(status.st_mode):
        _give_back(path)


def _lower(id: int, shift: int) -> int:
    return id - shift if shift <= id < shift + SHIFTED else id


def _lower_root(capability: bytes, shift: int) -> bytes:
    """Capabilities of a user namespace (revision 3 of ``vfs_ns_cap_data``) as those of its root now."""
    if len(capability) != 24:
        return capability
    revision, root = struct.unpack_from("<I", capability)[0], struct.unpack_from("<I", capability, 20)[0]
    root = _lower(root, shift)
    if root:
        return capability[:20] + struct.pack("<I", root)
    return struct.pack("<I", revision & 0x00FFFFFF | 0x02000000) + capability[4:20]


def _give_back(path: bytes) -> None:
    """Set the permissions and capabilities again that a file had before its owner was changed."""
    kept = xattr.find_xattr(path, _KEPT)
    if kept is None:
        return
    mode, _, capability = kept.partition(b":")
    os.chmod(path, int(mode, 8))
    if capability:
        xattr.set_xattr(path, _CAPABILITY, capability)
    xattr.remove_xattr(path, _KEPT)


def count_markers(branch: Path) -> int:
    """How many whiteouts and opaque markers :func:`convert` would turn; changes nothing."""
    return sum(
        name == OPAQUE or (name.startswith(WHITEOUT) and not name.startswith(METADATA))
        for _, _, names in os.walk(branch)
        for name in names
    )
