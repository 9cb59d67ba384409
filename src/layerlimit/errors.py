"""The errors of layerlimit: typed, one sentence each, with a stable code.

Every error that leaves the package is an :class:`Error`. Its text names the thing, the cause and
what to do; ``code`` is stable and machine-readable; ``exit_code`` is what the command ends with.
The floor ``linux/`` raises plain :class:`OSError`; the floors above turn it into one of these with
``raise … from error`` (:func:`from_os_error` picks the class by errno).
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar


class Error(Exception):
    """Any failure of layerlimit.

    ``message`` is one sentence; ``hint`` says what to do and may be empty; ``code`` narrows the
    class down (``"busy"``, ``"layer.not_found"``, …) and does not change between releases.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidArgument(Error):
    """A name, size, option or input that cannot be accepted; nothing was changed."""

    exit_code = 2
    default_code = "invalid_argument"


class NotFound(Error):
    """A layer that is not there."""

    exit_code = 3
    default_code = "not_found"


class AlreadyExists(Error):
    """A layer that is there already, or a state that conflicts with the request."""

    exit_code = 4
    default_code = "already_exists"


class Busy(Error):
    """Somebody holds the layer, or its image is attached elsewhere."""

    exit_code = 5
    default_code = "busy"


class OutOfSpace(Error):
    """A limit, or the host's disk, has no room for what was asked."""

    exit_code = 6
    default_code = "out_of_space"


class NotSupported(Error):
    """This kernel, disk or machine cannot do what was asked."""

    exit_code = 7
    default_code = "not_supported"


class LinuxOnly:
    """Stands in for the rest of the package on other systems: it can be imported there, but not used."""

    def __init__(self, *_: object, **__: object) -> None:
        raise NotSupported("layerlimit needs Linux", hint="run it in a Linux machine", code="platform")


class PermissionDenied(Error):
    """The process lacks a privilege."""

    exit_code = 8
    default_code = "permission_denied"


class Corrupt(Error):
    """State on disk is not what it must be; it is kept as it is."""

    exit_code = 9
    default_code = "corrupt"


_BY_ERRNO: dict[int, type[Error]] = {
    errno.ENOENT: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.EBUSY: Busy,
    errno.ETXTBSY: Busy,
    errno.ENOSPC: OutOfSpace,
    errno.EDQUOT: OutOfSpace,
    errno.EPERM: PermissionDenied,
    errno.EACCES: PermissionDenied,
    errno.EOPNOTSUPP: NotSupported,
    errno.ENOSYS: NotSupported,
    errno.ENODEV: NotSupported,
    errno.EUCLEAN: Corrupt,
    errno.EINVAL: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
}


def from_os_error(error: OSError, doing: str, *, hint: str = "") -> Error:
    """The typed error for ``error`` met while ``doing`` ("mount layer web"); never raises."""
    kind = _BY_ERRNO.get(error.errno or 0, Error)
    cause = os.strerror(error.errno) if error.errno else str(error)
    where = f" ({error.filename!s})" if error.filename and str(error.filename) not in doing else ""
    detail = f": {error.strerror}" if error.strerror and error.strerror != cause else ""
    return kind(f"cannot {doing}: {cause}{where}{detail}", hint=hint)
