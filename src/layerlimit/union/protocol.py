"""What every union mechanism offers: the seam between the driver and overlayfs, AUFS or what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from layerlimit.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount as an engine would make it: mount(8)'s type, source and comma-separated options."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """The directories that a union joins; all paths are absolute.

    ``lowers`` are read only, the nearest one first. ``upper`` takes every change; None makes a view that
    cannot be written. ``work`` is scratch space on the upper's mount, for unions that say ``needs_work``.
    """

    lowers: tuple[Path, ...]
    upper: Path | None = None
    work: Path | None = None

    def __post_init__(self) -> None:
        if not self.lowers and self.upper is None:
            raise InvalidArgument("a stack needs at least one directory", code="union.stack")
        for path in (*self.lowers, self.upper, self.work):
            if path is not None and not path.is_absolute():
                raise InvalidArgument(f"a stack takes absolute paths, not {path}", code="union.stack")

    @property
    def frozen(self) -> Stack:
        """The same tree as a view: what was the upper is the nearest lower."""
        return self if self.upper is None else Stack((self.upper, *self.lowers))


class Union(Protocol):
    """A kernel mechanism that shows a stack of directories as one tree.

    Objects are immutable and thread-safe; what is mounted is asked of the kernel each time.
    """

    @property
    def name(self) -> str:
        """What users call it: ``overlay``, ``aufs``."""

    @property
    def form(self) -> str:
        """How deletions are written in an upper: ``overlay`` (devices 0:0) or ``aufs`` (``.wh.`` files)."""

    @property
    def needs_work(self) -> bool:
        """Whether a writable stack needs a ``work`` directory."""

    def mounts(self, stack: Stack) -> list[Mount]:
        """How an engine would mount ``stack``; a description, nothing is touched.

        Raises InvalidArgument for paths that engines would misread (they split options at ``,`` and ``:``).
        """

    def mount(self, stack: Stack, target: Path, *, read_only: bool = False) -> None:
        """Mount ``stack`` at the directory ``target``, over whatever is mounted there.

        With ``read_only`` the upper is shown as one more lower: nothing is written to it, and it may be the
        upper of another mount meanwhile. On failure nothing is left at ``target``; the error is typed and
        carries the kernel's words.
        """

    def unmount(self, target: Path) -> None:
        """Unmount what is mounted at ``target``, never lazily; nothing mounted there is success.

        Raises Busy once the kernel has said EBUSY for half a second.
        """

    def is_mounted(self, target: Path) -> bool:
        """Whether ``target`` is a mount of this union, in microseconds; False where ``target`` is missing."""

    def check_backing(self, path: Path) -> None:
        """Raise NotSupported if the file system of ``path`` (or its nearest parent) cannot hold an upper."""

    def status(self) -> list[tuple[str, str]]:
        """Rows that a driver adds to its own, e.g. ``("Dirperm1 Supported", "true")``."""
