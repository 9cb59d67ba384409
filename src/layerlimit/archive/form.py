"""How deletions look on disk, and the names that carry meaning in layers.

The names are those of the OCI image layer specification ("Whiteouts"), which took them from AUFS;
the extended attributes are overlayfs's (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import enum


class Form(enum.Enum):
    """What a whiteout and an opaque mark look like in a directory of changes."""

    #: Whiteout: character device 0:0 of the deleted name. Opaque: an ``overlay.opaque`` attribute, ``y``.
    OVERLAY = "overlay"
    #: Whiteout: file ``.wh.<name>``. Opaque: file ``.wh..wh..opq``. The same as in a layer tar.
    AUFS = "aufs"
    #: A whole tree and no changes: what is deleted is not there, nothing marks it.
    FLAT = "flat"


WHITEOUT_PREFIX = b".wh."
#: Names that start so are marks and AUFS's own files, never the whiteout of a name.
META_PREFIX = b".wh..wh."
OPAQUE_MARKER = b".wh..wh..opq"
#: AUFS's shared whiteout inode: every whiteout of a branch is a hard link to it.
AUFS_WHITEOUT = b".wh..wh.aufs"
#: AUFS's store of hard-linked inodes, at the top of a branch.
AUFS_LINKS = b".wh..wh.plnk"

OVERLAY_PREFIXES = (b"trusted.overlay.", b"user.overlay.")
#: What overlayfs itself goes by on our mounts; anybody inside may set ``user.`` attributes.
OVERLAY_MARKS = b"trusted.overlay."
OPAQUE_VALUE = b"y"


def opaque_attribute(*, userxattr: bool) -> bytes:
    """Name of overlayfs's opaque attribute: ``user.`` on mounts with ``userxattr``, else ``trusted.``."""
    return b"user.overlay.opaque" if userxattr else b"trusted.overlay.opaque"


def is_overlay_attribute(name: bytes) -> bool:
    """Whether an extended attribute is overlayfs's own (escaped ones of nested mounts included)."""
    return name.startswith(OVERLAY_PREFIXES)
