"""A layer archive, extracted into a directory of changes."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from layerlimit.archive.contain import Tree
from layerlimit.archive.deletions import deletions_of
from layerlimit.archive.extract import Extractor
from layerlimit.archive.form import Form
from layerlimit.archive.limits import Limits
from layerlimit.archive.pipeline import Readable, Source
from layerlimit.archive.reader import Reader
from layerlimit.archive.tarformat import printable
from layerlimit.errors import Error, InvalidArgument, OutOfSpace, from_os_error
from layerlimit.linux.files import sync_file_system_of

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What a hostile or broken archive can bring about by its names and types.
_ARCHIVE_FAULT = frozenset(
    {
        errno.E2BIG,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.ERANGE,
        errno.EXDEV,
    }
)


@dataclass(frozen=True, slots=True)
class Applied:
    """What :func:`apply` did."""

    #: Sum of the apparent sizes of the archive's regular files and of the lengths of its symlinks' targets:
    #: what ``size`` says of the layer (unless entries replace others), and what Docker's overlay2 reports.
    bytes: int
    #: Entries of the archive, whiteouts included.
    entries: int
    #: ``sha256:<hex>`` of the uncompressed archive, all that follows its end included (OCI's diff ID).
    diff_id: str
    #: Length of the uncompressed archive, all that follows its end included.
    tar_bytes: int
    #: Things left out on purpose: attributes a layer may not set, devices in a user namespace.
    skipped: int
    #: The first of them, in words.
    warnings: tuple[str, ...]


def apply(
    stream: Readable,
    root: Path,
    *,
    form: Form,
    lowers: Sequence[Path] = (),
    owner: tuple[int, int] = (0, 0),
    limits: Limits | None = None,
    durable: bool = True,
    userxattr: bool = False,
) -> Applied:
    """Extract the layer ``stream`` into ``root`` and read the stream to its end.

    ``stream`` is a tar (ustar, pax or GNU), plain or compressed by gzip, zstd, bzip2 or xz; an empty one is
    an empty layer. ``root`` is an existing directory: the branch a union will use (``form`` OVERLAY or
    AUFS), or a whole tree (FLAT). Whiteouts and opaque marks become what ``form`` has for them;
    ``userxattr`` is that of the overlay mount. An entry replaces what has its name; directories are merged.
    A whiteout also removes what this archive wrote under its name before, an opaque mark only what it did
    not write. Directories that the archive needs and does not have are made as the first of ``lowers``
    (branches in the same form, nearest first) has them, else 0755 and owned by ``owner``; other owners are
    taken as they stand. Modes, owners, times (to the nanosecond), hard links, devices, extended attributes
    and ACLs are kept; the root's own are not touched.

    Symbolic links of lower layers are not seen: an entry ``bin/x`` over a lower ``bin → usr/bin`` makes a
    directory ``bin`` that hides the link, as containerd and Docker do.

    Nothing outside ``root`` is touched, whatever the archive says and whatever others rename meanwhile. No
    two calls may work on one root at once. Memory is bounded, but for what FLAT remembers of an existing
    tree: the names it writes there.

    Returns after a ``syncfs`` when ``durable``; otherwise the kernel writes when it likes. A failure, or
    being killed, leaves part of the layer in ``root``: extract where nobody looks, and give the directory
    its name afterwards.

    Raises ``InvalidArgument`` for what the archive must not contain (``archive.*`` codes: ``invalid``,
    ``breakout``, ``truncated``, ``checksum``, ``damaged``, ``link``, ``limit``, ``unsupported``),
    ``OutOfSpace`` where a disk, a quota or a limit in bytes has no room, other errors by their errno. The
    message names the entry. After a failure a thread may still wait for ``stream`` until its read returns.
    """
    limits = limits or Limits()
    deletions = deletions_of(form, userxattr=userxattr)
    with ExitStack() as resources:
        source = resources.enter_context(Source(stream, limits=limits))
        reader = Reader(source.chunk, limits=limits)
        try:
            tree = resources.enter_context(Tree(root, deletions, lowers=lowers, owner=owner))
        except OSError as error:
            raise from_os_error(error, f"open the directory of layer {root}") from error
        extractor = resources.enter_context(Extractor(reader, tree, deletions, limits=limits))
        try:
            extractor.run()
        except OSError as error:
            raise _entry_error(error, reader.name) from error
        reader.drain()
        try:
            if durable:
                sync_file_system_of(tree.fd, root)
        except OSError as error:
            raise from_os_error(error, f"write layer {root} to disk") from error
        return Applied(
            bytes=extractor.bytes,
            entries=reader.entries,
            diff_id=source.digest(),
            tar_bytes=source.bytes,
            skipped=extractor.notes.count,
            warnings=tuple(extractor.notes.texts),
        )


def _entry_error(error: OSError, name: bytes) -> Error:
    """The typed error for a system call that failed while the entry ``name`` was extracted."""
    number = error.errno or 0
    if number in _NO_ROOM:
        return OutOfSpace(
            f"there is no room for entry {printable(name)}: {error.strerror}",
            hint="raise the layer's limit or free space on its disk",
        )
    if number in _ARCHIVE_FAULT:
        return InvalidArgument(
            f"entry {printable(name)} is impossible: {error.strerror}", code="archive.invalid"
        )
    return from_os_error(error, f"extract entry {printable(name)}")
