"""AUFS: the union that the Go driver was written for.

Options and order of calls are those of the Docker driver's last release (v23.0.18); syntax and limits are
aufs(5) and fs/aufs of aufs6.1. AUFS writes the reason of an error to the kernel's log only.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from layerlimit.errors import Error, InvalidArgument, NotSupported, OutOfSpace, from_os_error
from layerlimit.linux.mount import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT
from layerlimit.linux.statfs import (
    AUFS_MAGIC,
    BTRFS_MAGIC,
    ECRYPTFS_MAGIC,
    NFS_MAGIC,
    OVERLAY_MAGIC,
    Statfs,
)
from layerlimit.union import aufs_options
from layerlimit.union.aufs_kernel import Kernel, LinuxKernel
from layerlimit.union.backing import refuse_backing
from layerlimit.union.held import hold
from layerlimit.union.protocol import Mount, Stack
from layerlimit.union.unmounting import unmount_patiently

# btrfs: AUFS misbehaves over it (Docker refused it too). The others AUFS refuses itself, without saying why:
# file systems that are stacked on another one cannot be branches (s_stack_depth, fs/aufs/branch.c).
_UNUSABLE: Final = frozenset({AUFS_MAGIC, BTRFS_MAGIC, ECRYPTFS_MAGIC, OVERLAY_MAGIC})

# The inode number table: unlinked as soon as it is made, but made with O_EXCL. It has to lie on a file
# system of its own mind (fs/aufs/fstype.h: au_test_fs_bad_xino) and must not eat into a limited layer.
_XINO_DIRECTORIES: Final = (Path("/dev/shm"), Path("/run"), Path("/tmp"))
_XINO_UNUSABLE: Final = frozenset({AUFS_MAGIC, ECRYPTFS_MAGIC, NFS_MAGIC})
_XINO_NAME: Final = "aufs.xino"
_XINO_TRIES: Final = 5
_XINO_PAUSE: Final = 0.02  # seconds

_AUPLINK_TRIES: Final = 5
_AUPLINK_AGAIN: Final = 22  # EINVAL: it missed the mount in a mount table that was changing

# A stack of several calls carries these until the last one: a process that is killed in between leaves a
# mount that is_mounted() does not take for the whole stack, and that the next mount() replaces.
UNFINISHED: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC  # statfs(2) shows them as ST_* bits of the same values

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aufs:
    """AUFS mounts: the upper read-write, every lower read-only with its whiteouts.

    ``kernel`` and ``sleep`` are for tests. Whether ``dirperm1`` is there is tried once per object.
    """

    kernel: Kernel = field(default_factory=LinuxKernel)
    sleep: Callable[[float], None] = time.sleep
    _dirperm1: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return "aufs"

    @property
    def form(self) -> str:
        return "aufs"

    @property
    def needs_work(self) -> bool:
        return False

    def mounts(self, stack: Stack) -> list[Mount]:
        branches = _branches(stack, _literal)
        tail = self._tail(self._xino_directory() / _XINO_NAME)
        if stack.upper is None:
            tail.append("ro")
        first, *rest = aufs_options.calls(branches, tail, room=self.kernel.data_max)
        if rest:
            raise NotSupported(
                f"the options of {len(branches)} branches do not fit the one call that an engine makes",
                hint="let layerlimit mount the layer: it appends what does not fit",
                code="aufs.page",
            )
        return [Mount("aufs", "none", tuple(first.split(",")))]

    def mount(self, stack: Stack, target: Path, *, read_only: bool = False) -> None:
        stack = stack.frozen if read_only else stack
        if not self.kernel.in_initial_user_namespace():
            raise NotSupported("AUFS cannot be mounted inside a user namespace", code="union.user_namespace")
        if self._is_unfinished(target):
            self.unmount(target)
        flags = 0 if stack.upper is not None else MS_RDONLY
        with ExitStack() as held:
            try:
                branches = _branches(stack, lambda path: _reachable(path, held))
                rest = self._mount_first(branches, target, flags)
                self._append(rest, target, flags)
            except OSError as error:
                raise self._typed(error, stack, target) from error

    def unmount(self, target: Path) -> None:
        try:
            is_aufs = self.kernel.statfs(target).type == AUFS_MAGIC
        except FileNotFoundError:
            return
        except OSError as error:
            raise from_os_error(error, f"unmount {target}") from error
        if is_aufs:
            self._flush(target)
        unmount_patiently(target, self.kernel.unmount, self.kernel.is_mount_point, sleep=self.sleep)

    def is_mounted(self, target: Path) -> bool:
        try:
            found = self.kernel.statfs(target)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise from_os_error(error, f"look at {target}") from error
        return found.type == AUFS_MAGIC and found.flags & UNFINISHED != UNFINISHED

    def check_backing(self, path: Path) -> None:
        refuse_backing(path, _UNUSABLE, "AUFS", look=self.kernel.statfs)

    def status(self) -> list[tuple[str, str]]:
        return [("Dirperm1 Supported", "true" if self._has_dirperm1() else "false")]

    # ---- the calls of one mount ----

    def _mount_first(self, branches: list[str], target: Path, flags: int) -> list[str]:
        """The mount(2) of as many branches as fit; returns the data of the remounts that are left to do."""
        directory = self._xino_directory()
        for left in reversed(range(_XINO_TRIES)):
            # The last try avoids the shared name: somebody else's file may really lie there.
            name = _XINO_NAME if left else f"aufs-{secrets.token_hex(4)}.xino"
            first, *rest = aufs_options.calls(
                branches, self._tail(directory / name), room=self.kernel.data_max
            )
            try:
                with self.kernel.alone():
                    self.kernel.mount(target, flags=flags | (UNFINISHED if rest else 0), data=first)
            except FileExistsError:
                if not left:
                    raise
                self.sleep(_XINO_PAUSE)
            else:
                return rest
        raise AssertionError("the loop returns or raises")

    def _append(self, batches: list[str], target: Path, flags: int) -> None:
        try:
            for index, data in enumerate(batches, start=1):
                more = UNFINISHED if index < len(batches) else 0
                self.kernel.mount(target, flags=flags | MS_REMOUNT | more, data=data)
        except BaseException:
            self.unmount(target)
            raise

    def _tail(self, xino: Path) -> list[str]:
        return ["dio", f"xino={xino}", *(["dirperm1"] if self._has_dirperm1() else [])]

    def _xino_directory(self) -> Path:
        for directory in _XINO_DIRECTORIES:
            try:
                if self.kernel.statfs(directory).type not in _XINO_UNUSABLE:
                    return directory
            except OSError:
                continue
        names = ", ".join(map(str, _XINO_DIRECTORIES))
        raise NotSupported(
            f"AUFS finds no place for its inode number table: none of {names} will do",
            hint="mount a tmpfs at /dev/shm",
            code="aufs.xino",
        )

    def _is_unfinished(self, target: Path) -> bool:
        try:
            found = self.kernel.statfs(target)
        except OSError as error:
            raise from_os_error(error, f"mount at {target}") from error
        return found.type == AUFS_MAGIC and found.flags & UNFINISHED == UNFINISHED

    def _typed(self, error: OSError, stack: Stack, target: Path) -> Error:
        count = len(stack.lowers) + (stack.upper is not None)
        doing = f"mount {count} AUFS branches at {target}"
        if error.errno == errno.ENODEV:
            return NotSupported(
                "this kernel has no AUFS",
                hint="use the union overlay, which every kernel has",
                code="union.missing",
            )
        if error.errno == errno.ENOSPC:  # what AUFS says of one branch too many, too (fs/aufs/branch.c)
            if stack.upper is not None and _is_full(self.kernel.statfs(stack.upper)):
                return OutOfSpace(f"cannot {doing}: the file system of {stack.upper} is full")
            return NotSupported(
                f"AUFS of this kernel cannot join {count} branches",
                hint="CONFIG_AUFS_BRANCH_MAX_* is the kernel's limit, by default 127",
                code="aufs.branches",
            )
        return from_os_error(error, doing, hint="the kernel's log (dmesg) has the reason")

    def _flush(self, target: Path) -> None:
        """Write pseudo-links back as hard links; where that cannot be done, AUFS keeps them as they are."""
        program = self.kernel.auplink()
        if program is None:
            return
        for _ in range(_AUPLINK_TRIES):
            status = self.kernel.run(str(program), str(target), "flush")
            if status == 0:
                return
            if status != _AUPLINK_AGAIN:
                break
        _log.warning("%s %s flush ended with %d", program, target, status)

    # ---- dirperm1 ----

    def _has_dirperm1(self) -> bool:
        """Whether ``dirperm1`` is an option here: mounted with it and, to be sure, without it."""
        if not self._dirperm1:
            for place in (tempfile.gettempdir(), *_XINO_DIRECTORIES):
                found = self._try_dirperm1(Path(place))
                if found is not None:
                    self._dirperm1.append(found)
                    break
            else:
                return False  # no place where AUFS mounts at all: asked again next time
        return self._dirperm1[0]

    def _try_dirperm1(self, place: Path) -> bool | None:
        with ExitStack() as undo:
            try:
                directory = Path(tempfile.mkdtemp(prefix="layerlimit-aufs-", dir=place))
            except OSError:
                return None
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            union, base, target = (directory / name for name in ("union", "base", "target"))
            for path in (union, base, target):
                path.mkdir()
            branches = _branches(Stack((base,), union), lambda path: _reachable(path, undo))
            xino = f"xino={self._xino_directory() / _XINO_NAME}"
            for tail in ([xino, "dirperm1"], [xino]):
                data = aufs_options.calls(branches, tail, room=self.kernel.data_max)
                try:
                    with self.kernel.alone():
                        self.kernel.mount(target, flags=0, data=data[0])
                except OSError:
                    continue
                self.unmount(target)
                return "dirperm1" in tail
        return None


def _branches(stack: Stack, name: Callable[[Path], str]) -> list[str]:
    upper = [] if stack.upper is None else [aufs_options.writable(name(stack.upper))]
    return [*upper, *(aufs_options.read_only(name(lower)) for lower in stack.lowers)]


def _literal(path: Path) -> str:
    """``path`` as an engine would write it."""
    if aufs_options.SPECIAL.intersection(os.fspath(path)):
        raise InvalidArgument(
            f"engines would misread the path {os.fspath(path)!r} in mount options",
            hint="use a root without : , and = in its path",
            code="union.path",
        )
    return os.fspath(path)


def _reachable(path: Path, held: ExitStack) -> str:
    """``path``, or a name without characters that AUFS would split it at, good as long as ``held``."""
    if aufs_options.SPECIAL.intersection(os.fspath(path)):
        return f"/proc/self/fd/{hold(path, held)}"
    return os.fspath(path)


def _is_full(found: Statfs) -> bool:
    return found.bavail == 0 or (found.files > 0 and found.ffree == 0)
