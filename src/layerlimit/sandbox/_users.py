"""Who the command runs as: ``--user`` as Docker reads it, from the root's own /etc/passwd and /etc/group.

The files are hostile: they are opened below the root's descriptor by the kernel's containment, must be
regular and small, and are parsed here. The C library's NSS is never asked: it would load plugins out of the
root (CVE-2019-14271). The rules are those of moby/sys/user, ``GetExecUser``.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

from layerlimit.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV, openat2
from layerlimit.sandbox._spec import Failure, doing

MAX_FILE: Final = 4 << 20  # bytes
MAX_ID: Final = (1 << 31) - 1
MAX_GROUPS: Final = 65536  # NGROUPS_MAX


class Account(NamedTuple):
    """The identity of the command; ``groups`` holds the primary one too."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: bytes


class _User(NamedTuple):
    name: bytes
    uid: int
    gid: int
    home: bytes


class _Group(NamedTuple):
    name: bytes
    gid: int
    members: tuple[bytes, ...]


def resolve(root: int, user: bytes) -> Account:
    """The account that ``user`` means in the root that ``root`` is a descriptor of.

    ``user`` is empty (root), ``name``, ``uid``, ``name:group``, ``uid:gid`` or a mixture. A name must be in
    the root's files, a number need not be. Without an explicit group, the groups that list the user are
    supplementary; with one, it is the only group.
    """
    who, colon, group = user.partition(b":")
    if (colon and not group) or (colon and not who):
        raise Failure(f"not a user: {os.fsdecode(user)!r}", hint="use USER or USER:GROUP")
    uid, gid, home, name = 0, 0, b"/", b""
    number = _number(who)
    known = _first_user(root, who or b"0", number if who else 0)
    if known is not None:
        uid, gid, home, name = known.uid, known.gid, known.home or b"/", known.name
    elif number is not None:
        uid = number
    elif who:
        raise _unknown("user", who, "passwd")
    if group:
        gid = _gid(root, group)
        return Account(uid, gid, (gid,), home)
    listed = (entry.gid for entry in _groups(root) if name in entry.members) if name else ()
    groups = tuple(dict.fromkeys((gid, *listed)))
    if len(groups) > MAX_GROUPS:
        raise Failure(f"the root's /etc/group puts the user {os.fsdecode(name)} into too many groups")
    return Account(uid, gid, groups, home)


def _first_user(root: int, who: bytes, number: int | None) -> _User | None:
    for entry in _users(root):
        if entry.name == who or entry.uid == number:
            return entry
    return None


def _gid(root: int, group: bytes) -> int:
    number = _number(group)
    for entry in _groups(root):
        if entry.name == group or entry.gid == number:
            return entry.gid
    if number is None:
        raise _unknown("group", group, "group")
    return number


def _unknown(kind: str, name: bytes, file: str) -> Failure:
    return Failure(
        f"there is no {kind} {os.fsdecode(name)!r} in the root's /etc/{file}", hint="a number needs no entry"
    )


def _users(root: int) -> list[_User]:
    found = []
    for line in _lines(root, b"etc/passwd"):
        fields = line.split(b":")
        if len(fields) < 4:
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if fields[0] and uid is not None and gid is not None:
            found.append(_User(fields[0], uid, gid, fields[5] if len(fields) > 5 else b""))
    return found


def _groups(root: int) -> list[_Group]:
    found = []
    for line in _lines(root, b"etc/group"):
        fields = line.split(b":")
        gid = _number(fields[2]) if len(fields) > 2 else None
        if gid is not None and fields[0]:
            members = tuple(fields[3].split(b",")) if len(fields) > 3 else ()
            found.append(_Group(fields[0], gid, members))
    return found


def _number(text: bytes) -> int | None:
    """A user or group id; a line whose id is none is skipped, never read as 0."""
    if not text.isdigit() or len(text) > 10 or int(text) > MAX_ID:
        return None
    return int(text)


def _lines(root: int, path: bytes) -> list[bytes]:
    """The lines of a file of the root; none when it is not there."""
    with doing(f"read the root's /{path.decode()}"):
        try:
            # NONBLOCK: a fifo in its place must not hang the start. NO_XDEV: only the root's own file system.
            fd = openat2(
                root,
                path,
                os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY,
                resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
            )
        except FileNotFoundError:
            return []
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_size > MAX_FILE:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            chunks = []
            left = MAX_FILE
            while left > 0 and (chunk := os.read(fd, left)):
                chunks.append(chunk)
                left -= len(chunk)
        finally:
            os.close(fd)
    return b"".join(chunks).split(b"\n")
