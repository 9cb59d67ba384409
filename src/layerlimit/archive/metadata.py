"""Owner, attributes, mode and times of what is extracted; calls that would change nothing are left out."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from layerlimit.archive.form import is_overlay_attribute
from layerlimit.archive.reader import Reader
from layerlimit.archive.tarformat import invalid, printable
from layerlimit.linux import xattr

MAX_TIME = 2**63 - 1  # nanoseconds
_MAX_ID = 2**32 - 2  # chown takes the next one for "leave as it is"
_KEPT_NOTES = 20
DEFAULT_ACL = b"system.posix_acl_default"
_ACCESS_ACL = b"system.posix_acl_access"


@dataclass(slots=True)
class Notes:
    """What was left out on purpose: how many times, and the first of them in words."""

    count: int = 0
    texts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.texts) < _KEPT_NOTES:
            self.texts.append(text)


def process_umask() -> int:
    """The umask of this process, read and not changed: threads share it."""
    for line in Path("/proc/self/status").read_bytes().splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    return 0o777


def bound_time(nanoseconds: int) -> int:
    """``nanoseconds``, or 1970 where file systems and the engines have no such time."""
    return nanoseconds if 0 <= nanoseconds <= MAX_TIME else 0


def entry_times(reader: Reader) -> tuple[int, int]:
    """Access and modification time of the current entry; never accessed before it was modified."""
    modified = bound_time(reader.mtime)
    if reader.atime is None:
        return modified, modified
    return max(bound_time(reader.atime), modified), modified


def check_owner(reader: Reader) -> None:
    """Raise ``InvalidArgument`` for ids that are none."""
    if not (0 <= reader.uid <= _MAX_ID and 0 <= reader.gid <= _MAX_ID):
        raise invalid(f"the owner {reader.uid}:{reader.gid} of entry {printable(reader.name)} cannot be set")


def set_xattrs(
    target: int | bytes, reader: Reader, notes: Notes, *, plain: bool, skip: frozenset[bytes] = frozenset()
) -> None:
    """Set the entry's attributes on ``target``; ``plain`` is True for files and directories.

    ``trusted.`` attributes and overlayfs's own are left out: an archive could plant a union's marks by
    them. So are those that the file system or the kind of file cannot have. Everything else raises OSError.
    """
    for name, value in reader.xattrs.items():
        if name in skip:
            continue
        if name.startswith(b"trusted.") or is_overlay_attribute(name):
            notes.add(f"attribute {printable(name)} of entry {printable(reader.name)} is not for layers")
            continue
        try:
            xattr.set_xattr(target, name, value)
        except OSError as error:
            user = name.startswith(b"user.") and not plain
            if error.errno == errno.EOPNOTSUPP or (user and error.errno in (errno.EPERM, errno.EACCES)):
                notes.add(
                    f"attribute {printable(name)} of entry {printable(reader.name)} is not supported here"
                )
                continue
            raise


def strip_acls(target: int | bytes) -> None:
    """Remove the ACLs that a directory's default ACL gave to what was made in it."""
    for name in (_ACCESS_ACL, DEFAULT_ACL):
        try:
            xattr.remove_xattr(target, name)
        except OSError as error:
            if error.errno not in xattr.ABSENT:
                raise


def chmod_entry(directory: int, name: bytes, mode: int) -> None:
    """chmod of an entry that is no symbolic link; if it has become one, the link itself refuses.

    fchmodat2 came with Linux 6.6; a handle and ``/proc`` do the same on every kernel, on ``nodev`` too.
    """
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISLNK(os.fstat(handle).st_mode):
            os.chmod(xattr.handle_path(handle), mode)
    finally:
        os.close(handle)
