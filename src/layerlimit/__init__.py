"""layerlimit: layered copy-on-write root filesystems with a hard disk limit."""

import importlib
import sys
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from layerlimit.archive import Change, Kind
    from layerlimit.driver import Adoption, Driver, State, adopt
    from layerlimit.limit import Limit, Usage, format_size, parse_size
    from layerlimit.store import Info, Layer, Policy, Store
    from layerlimit.union import Mount

__all__ = [
    "Adoption",
    "AlreadyExists",
    "Busy",
    "Change",
    "Corrupt",
    "Driver",
    "Error",
    "Info",
    "InvalidArgument",
    "Kind",
    "Layer",
    "Limit",
    "Mount",
    "NotFound",
    "NotSupported",
    "OutOfSpace",
    "PermissionDenied",
    "Policy",
    "State",
    "Store",
    "Usage",
    "adopt",
    "format_size",
    "parse_size",
]
__version__ = "0.1.0"

# Loaded when they are first used (PEP 562): naming the version, or a sub-command's help, needs none of them.
_PLACES = {
    "layerlimit.archive": ("Change", "Kind"),
    "layerlimit.driver": ("Adoption", "Driver", "State", "adopt"),
    "layerlimit.limit": ("Limit", "Usage", "format_size", "parse_size"),
    "layerlimit.store": ("Info", "Layer", "Policy", "Store"),
    "layerlimit.union": ("Mount",),
}


def __getattr__(name: str) -> object:
    for module, names in _PLACES.items():
        if name in names:
            linux = sys.platform == "linux"
            found: object = getattr(importlib.import_module(module), name) if linux else LinuxOnly
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
