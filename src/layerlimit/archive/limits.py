"""What a layer archive may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on an untrusted archive; ``None`` means no bound.

    A bound on names, entries or headers raises ``InvalidArgument`` (code ``archive.limit``); a bound on
    bytes raises ``OutOfSpace`` with the same code. The bytes a layer may use on disk are the limiter's
    business: it answers ENOSPC.
    """

    #: Entries of one archive. Directories of a layer are remembered until its end, hence a bound by default.
    entries: int | None = 5_000_000
    #: Length of a cleaned name, and of a link's target (PATH_MAX).
    path_bytes: int = 4096
    #: Length of one component of a name (NAME_MAX).
    component_bytes: int = 255
    #: Components of a name.
    depth: int = 1024
    #: Bytes of the uncompressed archive, holes of sparse files included.
    expanded_bytes: int | None = None
    #: Uncompressed bytes for each compressed byte; looked at from :attr:`ratio_floor` bytes on. gzip
    #: cannot exceed 1032; zstd, bzip2 and xz reach this figure with nothing but zeros.
    ratio: int | None = 10_000
    #: Uncompressed bytes below which the ratio is not looked at.
    ratio_floor: int = 64 * MIB
    #: Bytes of one pax header, or of one GNU long name.
    pax_bytes: int = MIB
    #: Extended attributes of one entry.
    xattrs: int = 512
    #: Bytes of one extended attribute's value (XATTR_SIZE_MAX).
    xattr_bytes: int = 64 * KIB
    #: Regions of one sparse file.
    sparse_regions: int = 500_000
