"""Layer archives: a directory of changes as a tar, and back."""

from layerlimit.archive.apply import Applied, apply
from layerlimit.archive.changes import Change, Kind, changes, compare
from layerlimit.archive.form import Form
from layerlimit.archive.limits import Limits
from layerlimit.archive.size import Usage, size, usage
from layerlimit.archive.stream import LayerStream, read_stream
from layerlimit.archive.write import Written, write

__all__ = [
    "Applied",
    "Change",
    "Form",
    "Kind",
    "LayerStream",
    "Limits",
    "Usage",
    "Written",
    "apply",
    "changes",
    "compare",
    "read_stream",
    "size",
    "usage",
    "write",
]
