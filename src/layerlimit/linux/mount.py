"""Mounting: mount(2), umount2(2), and the file-descriptor based calls of Linux 5.2 and later.

With the new calls a mount is made in steps, and nobody sees it before the last one::

    with FsContext("ext4") as context:
        context.set_string("source", "/dev/loop0")
        context.set_flag("ro")
        context.create()
        with context.mount(attributes=MOUNT_ATTR_NODEV) as mount:
            mount.attach(target)

A :class:`DetachedMount` that was never attached is gone when it is closed, or when the process dies: a
failure half-way leaves nothing behind. Every error is an :class:`OSError` with errno, the call and the path;
errors of an :class:`FsContext` carry the message that the file system wrote about it, if it wrote one.

Facts: include/uapi/linux/mount.h, fsopen(2), mount_setattr(2), Documentation/filesystems/mount_api.rst.
"""

from __future__ import annotations

import ctypes
import os
from types import TracebackType
from typing import Final, Self

from layerlimit.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    check,
    libc,
    os_error,
    path_bytes,
    syscall,
)

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 0x4000
MS_SILENT: Final = 0x8000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20

MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8
MOUNT_ATTR_IDMAP: Final = 1 << 20

FSCONFIG_STRING_MAX: Final = 255  # bytes; strndup_user(…, 256) in fs/fsopen.c
PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")
MOUNT_DATA_MAX: Final = PAGE_SIZE - 1  # bytes of mount(2) data; the kernel cuts what is longer, silently

_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_FSOPEN: Final = 430
_NR_FSCONFIG: Final = 431
_NR_FSMOUNT: Final = 432
_NR_FSPICK: Final = 433
_NR_MOUNT_SETATTR: Final = 442

_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSPICK_CLOEXEC: Final = 1
_FSPICK_SYMLINK_NOFOLLOW: Final = 2
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4

_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_SET_FD: Final = 5
_FSCONFIG_CMD_CREATE: Final = 6
_FSCONFIG_CMD_RECONFIGURE: Final = 7

AnyPath = str | bytes | os.PathLike[str]

libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(
    source: AnyPath | None,
    target: AnyPath,
    fstype: str | None,
    *,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """mount(2). ``data`` over :data:`MOUNT_DATA_MAX` is refused (``ValueError``): the kernel would cut it."""
    raw = None if data is None else path_bytes(data)
    if raw is not None and len(raw) > MOUNT_DATA_MAX:
        raise ValueError(f"mount data of {len(raw)} bytes; the kernel takes {MOUNT_DATA_MAX}")
    check(
        libc.mount(
            None if source is None else path_bytes(source),
            path_bytes(target),
            None if fstype is None else fstype.encode(),
            flags,
            raw,
        ),
        "mount",
        target,
    )


def unmount(target: AnyPath, *, flags: int = 0) -> None:
    """umount2(2) of what is mounted at ``target`` itself; a symbolic link is never followed."""
    check(libc.umount2(path_bytes(target), flags | UMOUNT_NOFOLLOW), "umount2", target)


def set_propagation(target: AnyPath, propagation: int, *, recursive: bool = False) -> None:
    """Make the mount at ``target`` MS_PRIVATE, MS_SLAVE or MS_SHARED."""
    set_attributes(target, propagation=propagation, recursive=recursive)


def set_attributes(
    target: AnyPath | int,
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    user_namespace: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2) on a mount point or on the descriptor of a mount; MOUNT_ATTR_* bits.

    ``user_namespace`` is the descriptor that MOUNT_ATTR_IDMAP wants.
    """
    attr = _MountAttr(set_, clear, propagation, user_namespace)
    flags = AT_RECURSIVE if recursive else 0
    if isinstance(target, int):
        fd, path, flags = target, b"", flags | AT_EMPTY_PATH
    else:
        fd, path, flags = AT_FDCWD, path_bytes(target), flags | AT_SYMLINK_NOFOLLOW
    result = syscall(_NR_MOUNT_SETATTR, fd, path, flags, ctypes.byref(attr), ctypes.sizeof(attr))
    check(result, "mount_setattr", None if isinstance(target, int) else target)


class DetachedMount:
    """A mount that is attached nowhere yet; closing it ends it, unless :meth:`attach` put it somewhere.

    ``fd`` is an O_PATH descriptor of its root and may be used with ``dir_fd=``.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def set_attributes(self, *, set_: int = 0, clear: int = 0, recursive: bool = False) -> None:
        """Change MOUNT_ATTR_* bits before anybody can see the mount."""
        set_attributes(self.fd, set_=set_, clear=clear, recursive=recursive)

    def attach(self, target: AnyPath) -> None:
        """move_mount(2) to ``target``, over whatever is mounted there; a symbolic link is not followed."""
        result = syscall(_NR_MOVE_MOUNT, self.fd, b"", AT_FDCWD, path_bytes(target), _MOVE_MOUNT_F_EMPTY_PATH)
        check(result, "move_mount", target)

    def close(self) -> None:
        """Drop the descriptor, once; more calls do nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FsContext:
    """A file system being configured: fsopen(2), or fspick(2) of one that is mounted.

    A context manager; used by one thread at a time.
    """

    def __init__(self, fstype: str) -> None:
        """fsopen(2). An unknown type is ``ENODEV``."""
        self.fd = check(syscall(_NR_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC), "fsopen", fstype)
        self._name = fstype

    @classmethod
    def pick(cls, mount_point: AnyPath) -> Self:
        """fspick(2): the context in which a mounted file system is reconfigured."""
        self = cls.__new__(cls)
        flags = _FSPICK_CLOEXEC | _FSPICK_SYMLINK_NOFOLLOW
        self.fd = check(syscall(_NR_FSPICK, AT_FDCWD, path_bytes(mount_point), flags), "fspick", mount_point)
        self._name = os.fsdecode(mount_point)
        return self

    def set_flag(self, key: str) -> None:
        """A parameter without a value, e.g. ``ro``."""
        self._configure(_FSCONFIG_SET_FLAG, key, None, 0)

    def set_string(self, key: str, value: AnyPath) -> None:
        """A parameter with a value of at most :data:`FSCONFIG_STRING_MAX` bytes (longer: ``EINVAL``)."""
        self._configure(_FSCONFIG_SET_STRING, key, path_bytes(value), 0)

    def set_fd(self, key: str, fd: int) -> None:
        """A parameter given as an open descriptor; overlay takes its directories so since 6.13."""
        self._configure(_FSCONFIG_SET_FD, key, None, fd)

    def create(self) -> None:
        """Make (or find) the superblock from what was configured."""
        self._configure(_FSCONFIG_CMD_CREATE, None, None, 0)

    def reconfigure(self) -> None:
        """Apply what was configured to a superblock that was picked."""
        self._configure(_FSCONFIG_CMD_RECONFIGURE, None, None, 0)

    def mount(self, *, attributes: int = 0) -> DetachedMount:
        """fsmount(2): a mount of the created superblock, attached nowhere; MOUNT_ATTR_* bits."""
        result = syscall(_NR_FSMOUNT, self.fd, _FSMOUNT_CLOEXEC, attributes)
        if result < 0:
            raise self._error(ctypes.get_errno(), "fsmount")
        return DetachedMount(result)

    def messages(self) -> list[str]:
        """What the file system logged since the last call, oldest first, without ``e ``, ``w ``, ``i ``."""
        found: list[str] = []
        while True:
            try:
                line = os.read(self.fd, 4096)
            except OSError:  # ENODATA: nothing more
                return found
            found.append(line.decode(errors="replace").partition(" ")[2].strip())

    def close(self) -> None:
        """Drop the context, once; a mount made of it stays."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _configure(self, command: int, key: str | None, value: bytes | None, aux: int) -> None:
        raw_key = None if key is None else key.encode()
        if syscall(_NR_FSCONFIG, self.fd, command, raw_key, value, aux) < 0:
            what = "create" if command == _FSCONFIG_CMD_CREATE else key or "reconfigure"
            raise self._error(ctypes.get_errno(), f"fsconfig({what})", value)

    def _error(self, code: int, call: str, value: bytes | None = None) -> OSError:
        path = self._name if value is None else os.fsdecode(value)
        return os_error(code, call, path, detail="; ".join(self.messages()))


def clone_tree(path: AnyPath, *, recursive: bool = False) -> DetachedMount:
    """open_tree(2) with OPEN_TREE_CLONE: a bind mount of ``path`` that is attached nowhere yet."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | AT_SYMLINK_NOFOLLOW | (AT_RECURSIVE if recursive else 0)
    return DetachedMount(check(syscall(_NR_OPEN_TREE, AT_FDCWD, path_bytes(path), flags), "open_tree", path))


def bind(source: AnyPath, target: AnyPath, *, read_only: bool = False, recursive: bool = False) -> None:
    """Bind-mount ``source`` at ``target`` in one step: with ``read_only`` it is never seen writable."""
    with clone_tree(source, recursive=recursive) as tree:
        if read_only:
            tree.set_attributes(set_=MOUNT_ATTR_RDONLY, recursive=recursive)
        tree.attach(target)


def make_read_only(mount_point: AnyPath) -> None:
    """Reconfigure the file system mounted there, in all its mounts; EBUSY while it is being written to."""
    with FsContext.pick(mount_point) as context:
        context.set_flag("ro")
        context.reconfigure()
