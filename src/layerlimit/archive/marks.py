"""Reading a directory of changes: which names are its own, which it deletes, whether it hides what is below.

One function for each of the forms, used wherever a layer's directory is walked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from layerlimit.archive.form import (
    META_PREFIX,
    OPAQUE_MARKER,
    OPAQUE_VALUE,
    OVERLAY_MARKS,
    WHITEOUT_PREFIX,
    Form,
)
from layerlimit.archive.writer import display
from layerlimit.errors import Corrupt
from layerlimit.linux import xattr

#: A directory's opaque attribute with this value says: some of the empty files here are whiteouts, look
#: at their attributes (overlayfs.rst, "Nesting overlayfs mounts", since Linux 6.7).
_XATTR_WHITEOUTS = b"x"
LOST_AND_FOUND = b"lost+found"


@dataclass(frozen=True, slots=True)
class Listing:
    """The content of one directory of changes."""

    #: Hides what lower layers have in this directory.
    opaque: bool
    #: Names of lower layers that are deleted here, sorted.
    whiteouts: list[bytes]
    #: Names of the layer's own entries, sorted by their bytes; no marks, nothing of AUFS's own.
    names: list[bytes]
    #: Those of ``names`` that are directories.
    directories: frozenset[bytes]
    #: Those of ``names`` that are neither directories nor regular files.
    others: frozenset[bytes]


def read_directory(fd: int, form: Form, attributes: Sequence[bytes], *, top: bool) -> Listing:
    """What the open directory ``fd`` holds; ``attributes`` are the names of its extended attributes.

    ``top`` is True for a layer's root, where the ``lost+found`` of a file system of its own is left out.
    Raises OSError, and Corrupt for a mark that no union can have made.
    """
    whiteouts: list[bytes] = []
    names: list[bytes] = []
    directories: list[bytes] = []
    others: list[bytes] = []
    opaque = overlay_opaque(fd, attributes) if form is Form.OVERLAY else b""
    with os.scandir(xattr.handle_path(fd)) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_file(follow_symlinks=False):
                if form is Form.AUFS and name.startswith(WHITEOUT_PREFIX):
                    if name == OPAQUE_MARKER:
                        opaque = OPAQUE_VALUE
                    elif not name.startswith(META_PREFIX):
                        whiteouts.append(_deleted(name))
                    continue
                if opaque == _XATTR_WHITEOUTS and has_whiteout_attribute(fd, name):
                    whiteouts.append(name)
                    continue
            elif entry.is_dir(follow_symlinks=False):
                if form is Form.AUFS and name.startswith(META_PREFIX):
                    continue
                directories.append(name)
            else:
                if form is Form.OVERLAY and not entry.is_symlink() and is_whiteout_device(fd, name):
                    whiteouts.append(name)
                    continue
                others.append(name)
            names.append(name)
    if top and LOST_AND_FOUND in directories:
        names.remove(LOST_AND_FOUND)
        directories.remove(LOST_AND_FOUND)
    names.sort()
    whiteouts.sort()
    return Listing(
        opaque=opaque == OPAQUE_VALUE,
        whiteouts=whiteouts,
        names=names,
        directories=frozenset(directories),
        others=frozenset(others),
    )


def overlay_opaque(fd: int, attributes: Sequence[bytes]) -> bytes:
    """The value of overlayfs's opaque attribute of the directory ``fd``, empty when there is none."""
    name = OVERLAY_MARKS + b"opaque"
    return (xattr.find_xattr(fd, name) or b"") if name in attributes else b""


def is_whiteout_device(fd: int, name: bytes) -> bool:
    """Whether ``name`` in the directory ``fd`` is overlayfs's whiteout, the character device 0:0."""
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False  # gone meanwhile; whoever opens it next says so
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def has_whiteout_attribute(fd: int, name: bytes) -> bool:
    """Whether the regular file ``name`` is a whiteout of the kind that needs no device node."""
    path = xattr.entry_path(fd, name)
    try:
        if os.stat(name, dir_fd=fd, follow_symlinks=False).st_size:
            return False
        return OVERLAY_MARKS + b"whiteout" in xattr.list_xattrs(path)
    except FileNotFoundError:
        return False


def _deleted(mark: bytes) -> bytes:
    name = mark[len(WHITEOUT_PREFIX) :]
    if name in (b"", b".", b".."):
        raise Corrupt(f"{display(mark)!r} is no whiteout of anything", hint="remove it from the layer")
    return name
