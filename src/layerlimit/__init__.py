"""layerlimit: layered copy-on-write root filesystems with a hard disk limit."""

from layerlimit.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    Error,
    InvalidArgument,
    NotFound,
    NotSupported,
    OutOfSpace,
    PermissionDenied,
)

__all__ = [
    "AlreadyExists",
    "Busy",
    "Corrupt",
    "Error",
    "InvalidArgument",
    "NotFound",
    "NotSupported",
    "OutOfSpace",
    "PermissionDenied",
]
__version__ = "0.1.0"
