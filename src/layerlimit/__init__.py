"""layerlimit: layered copy-on-write root filesystems with a hard disk limit."""

import sys

from layerlimit.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    Error,
    InvalidArgument,
    LinuxOnly,
    NotFound,
    NotSupported,
    OutOfSpace,
    PermissionDenied,
)

if sys.platform == "linux":
    from layerlimit.archive import Change, Kind
    from layerlimit.driver import Adoption, Driver, State, adopt
    from layerlimit.limit import Limit, Usage, format_size, parse_size
    from layerlimit.union import Mount
else:
    Adoption = Change = Driver = Kind = Limit = Mount = State = Usage = LinuxOnly
    adopt = format_size = parse_size = LinuxOnly

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
