"""Layer archives: a directory of changes as a tar, and back."""

from layerlimit.archive.form import Form
from layerlimit.archive.limits import Limits

__all__ = ["Form", "Limits"]
