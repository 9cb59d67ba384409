"""layerlimit: layered copy-on-write root filesystems with a hard disk limit."""

from layerlimit.archive import Change, Kind
from layerlimit.driver import Adoption, Driver, State, adopt
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
from layerlimit.limit import Limit, Usage, format_size, parse_size
from layerlimit.union import Mount

__all__ = [
    "Adoption",
    "AlreadyExists",
    "Busy",
    "Change",
    "Corrupt",
    "Driver",
    "Error",
    "InvalidArgument",
    "Kind",
    "Limit",
    "Mount",
    "NotFound",
    "NotSupported",
    "OutOfSpace",
    "PermissionDenied",
    "State",
    "Usage",
    "adopt",
    "format_size",
    "parse_size",
]
__version__ = "0.1.0"
