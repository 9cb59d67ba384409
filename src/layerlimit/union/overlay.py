"""overlayfs: the union of every current kernel.

Facts: Documentation/filesystems/overlayfs.rst and fs/overlayfs/params.c; limits and errors were measured.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from layerlimit.errors import InvalidArgument, NotSupported, from_os_error
from layerlimit.linux.mount import bind, unmount
from layerlimit.linux.statfs import AUFS_MAGIC, ECRYPTFS_MAGIC, NFS_MAGIC, OVERLAY_MAGIC
from layerlimit.linux.statx import is_mount_point
from layerlimit.union import overlay_context, overlay_page
from layerlimit.union.backing import refuse_backing
from layerlimit.union.protocol import Mount, Stack
from layerlimit.union.unmounting import unmount_patiently

LOWERS_MAX: Final = 500  # OVL_MAX_STACK in fs/overlayfs/params.h

_UNUSABLE_UPPERS: Final = frozenset({AUFS_MAGIC, ECRYPTFS_MAGIC, NFS_MAGIC, OVERLAY_MAGIC})
_MISREAD: Final = re.compile(r'[\\:,"]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """overlay mounts with every option given explicitly, since kernels differ in their defaults.

    ``api`` is how to mount: ``new`` (fsopen and ``lowerdir+``, Linux 6.8), ``mount2`` (mount(2), every
    kernel), or ``auto``: the first of them that this kernel has. ``redirect_dir="on"`` makes renames of lower
    directories work and uppers unreadable for other tools. ``userxattr`` is for user namespaces. ``volatile``
    never syncs; the kernel then refuses the next mount of the work directory until ``work/incompat/volatile``
    in it is removed, which is right only after a clean unmount.

    A view of one directory is a read-only bind mount, as overlay joins at least two.
    """

    api: Literal["auto", "new", "mount2"] = "auto"
    redirect_dir: Literal["nofollow", "on"] = "nofollow"
    userxattr: bool = False
    volatile: bool = False

    @property
    def name(self) -> str:
        return "overlay"

    @property
    def form(self) -> str:
        return "overlay"

    @property
    def needs_work(self) -> bool:
        return True

    def mounts(self, stack: Stack) -> list[Mount]:
        _check(stack)
        for path in (*stack.lowers, stack.upper, stack.work):
            if path is not None and _MISREAD.search(os.fspath(path)):
                raise InvalidArgument(
                    f"engines would misread the path {os.fspath(path)!r} in mount options",
                    hint='use a root without \\ : , and " in its path',
                    code="union.path",
                )
        if stack.upper is None and len(stack.lowers) == 1:
            return [Mount("bind", os.fspath(stack.lowers[0]), ("ro", "rbind"))]
        if stack.upper is not None and not stack.lowers:
            return [Mount("bind", os.fspath(stack.upper), ("rw", "rbind"))]
        options = []
        if stack.upper is not None:
            options += [f"workdir={stack.work}", f"upperdir={stack.upper}"]
        options.append("lowerdir=" + ":".join(map(os.fspath, stack.lowers)))
        options += [key if value is None else f"{key}={value}" for key, value in self._options(stack).items()]
        return [Mount("overlay", "overlay", tuple(options))]

    def mount(self, stack: Stack, target: Path, *, read_only: bool = False) -> None:
        stack = stack.frozen if read_only else stack
        _check(stack)
        doing = f"mount a stack of {len(stack.lowers)} layers at {target}"
        try:
            if stack.upper is None and len(stack.lowers) == 1:
                bind(stack.lowers[0], target, read_only=True)
            elif stack.upper is not None and not stack.lowers:
                bind(stack.upper, target)
            else:
                by = overlay_context if self._appends() else overlay_page
                by.mount(stack, target, self._options(stack), read_only=stack.upper is None)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise NotSupported(
                    "this kernel has no overlayfs", hint="load the module overlay", code="union.missing"
                ) from error
            # A mistake in one option is told to the caller, one in their combination to the log only.
            silent = error.errno == errno.EINVAL and str(error.strerror).endswith(os.strerror(errno.EINVAL))
            hint = "the kernel's log (dmesg) has the reason" if silent else ""
            raise from_os_error(error, doing, hint=hint) from error

    def unmount(self, target: Path) -> None:
        unmount_patiently(target, unmount, is_mount_point)

    def is_mounted(self, target: Path) -> bool:
        try:
            return is_mount_point(target)  # not the type of the file system: a view may be a bind mount
        except OSError as error:
            raise from_os_error(error, f"look at {target}") from error

    def check_backing(self, path: Path) -> None:
        refuse_backing(path, _UNUSABLE_UPPERS, "overlay")

    def status(self) -> list[tuple[str, str]]:
        return [("Overlay Mount API", "lowerdir+" if self._appends() else "mount(2)")]

    def _appends(self) -> bool:
        return overlay_context.available() if self.api == "auto" else self.api == "new"

    def _options(self, stack: Stack) -> dict[str, str | None]:
        options: dict[str, str | None] = {
            "index": "off",
            "metacopy": "off",
            "redirect_dir": self.redirect_dir,
            "nfs_export": "off",
            "xino": "auto",
        }
        if self.userxattr:
            options["userxattr"] = None
        if self.volatile and stack.upper is not None:
            options["volatile"] = None
        return options


def _check(stack: Stack) -> None:
    if len(stack.lowers) > LOWERS_MAX:
        raise InvalidArgument(
            f"a stack of {len(stack.lowers)} layers; overlay joins at most {LOWERS_MAX}",
            hint="commit some of them into one",
            code="overlay.layers",
        )
    if stack.upper is not None and stack.lowers and stack.work is None:
        raise InvalidArgument("overlay needs a work directory beside the upper", code="union.stack")
