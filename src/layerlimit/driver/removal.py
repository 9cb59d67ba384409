"""Taking a layer out: rename, then delete; and cleaning up what a crash left of that or of a creation.

    trash/<id>.<random>/layers   the chain, moved here: from then on the layer is gone, and known to be
    trash/<id>.<random>/<piece>  its directories and files, moved here one by one unless empty, then deleted

Steps of a removal, with what a crash before the next one leaves: unmounted (the layer is whole) → chain
moved and both directories synced (gone; its pieces are orphans that the trash entry explains) → pieces
moved → deleted. :meth:`Removal.sweep` finishes each. A creation begins with ``meta/<id>``: pieces with a
record but without a chain are half of a layer that never was, and go the same way. Pieces with neither
are not ours to delete and move to ``lost/``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from layerlimit.driver.layout import REMOVING, Layout, is_id
from layerlimit.driver.records import Records
from layerlimit.errors import from_os_error
from layerlimit.linux import files

log = logging.getLogger("layerlimit")


class Removal:
    """The trash of one root."""

    def __init__(self, layout: Layout, records: Records) -> None:
        self._layout = layout
        self._records = records

    def discard(self, id: str) -> Path:
        """Move an unmounted layer to the trash, durably; the caller holds its lock and then deletes."""
        try:
            entry = self._entry(id)
            os.rename(self._layout.layers / id, entry / "layers")
            # The new name first. Most file systems write all three in one go: the other calls find it done.
            for directory in (self._layout.trash, entry, self._layout.layers):
                files.sync_directory(directory)
            self.move_pieces(id, entry)
        except OSError as error:
            raise from_os_error(error, f"remove layer {id}") from error
        return entry

    def _entry(self, id: str) -> Path:
        entry = self._layout.trash / f"{id}.{secrets.token_hex(4)}"
        entry.mkdir(mode=0o700)
        return entry

    def move_pieces(self, id: str, entry: Path) -> None:
        """Move what is there of a layer into its trash entry; repeating it is harmless.

        Empty directories go at once: a limited layer consists of such, its record and its image.
        """
        self._layout.unshut(id)
        for name, path in self._layout.pieces(id):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.rmdir(path)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                    os.rename(path, f"{entry}/{name}")

    def clear_leftovers(self, id: str) -> None:
        """Before ``id`` is created: finish an interrupted removal or creation of the same name."""
        pieces = [path for name, path in self._layout.pieces(id) if os.path.lexists(path)]
        if not pieces:
            return
        if (self._layout.meta / id).exists() or self._is_removed(id):
            try:
                entry = self._entry(id)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._delete_in_place(id)
                return
            self.move_pieces(id, entry)
            self.delete(entry)
            return
        for path in pieces:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # an empty directory is nothing to lose
            if os.path.lexists(path):
                log.warning("%s belonged to no layer; it is kept as %s", path, self._layout.lose(path))

    def _delete_in_place(self, id: str) -> None:
        """On a full disk, which has no room for an entry; the record, which explains the rest, goes last."""
        self._layout.unshut(id)
        for _, path in sorted(self._layout.pieces(id), key=lambda piece: piece[0] == "meta"):
            delete_tree(path)

    def _is_removed(self, id: str) -> bool:
        return any(
            name.rpartition(".")[0] == id and (self._layout.trash / name / "layers").exists()
            for name in os.listdir(self._layout.trash)
        )

    def delete(self, entry: Path) -> None:
        """Delete a trash entry; what cannot be deleted now is left for the next sweep."""
        try:
            delete_tree(entry)
        except OSError as error:
            log.warning("cannot delete %s yet: %s", entry, error)

    def sweep(self, lock: Callable[[str], contextlib.AbstractContextManager[object]]) -> None:
        """Delete what is in the trash; ``lock`` tries a layer's lock and yields None when it is taken."""
        for name in os.listdir(self._layout.trash):
            entry = self._layout.trash / name
            id = name.rpartition(".")[0]
            if name.startswith("."):
                self._sweep_staged(entry, lock)
                continue
            if not is_id(id):
                continue
            with lock(id) as held:
                if held is None:
                    continue
                if not self._records.exists(id) and (entry / "layers").exists():
                    self.move_pieces(id, entry)
            self.delete(entry)

    def sweep_everywhere(self, lock: Callable[[str], contextlib.AbstractContextManager[object]]) -> None:
        """Finish the creations and removals that a crash interrupted; reads the names of all layers."""
        for id in set(filter(is_id, os.listdir(self._layout.meta))) - set(self._records.ids()):
            with lock(id) as held:
                if held is not None and not self._records.exists(id):
                    self.clear_leftovers(id)
        for directory in ("mnt", "diff", "layers"):
            for name in os.listdir(self._layout.root / directory):
                if name.endswith(REMOVING):
                    self.delete(self._layout.root / directory / name)

    def _sweep_staged(
        self, path: Path, lock: Callable[[str], contextlib.AbstractContextManager[object]]
    ) -> None:
        """A record or chain left by a crash before its rename, ``.<id>.new``; its writer has the lock."""
        id = path.name.removeprefix(".").removesuffix(".new")
        with lock(id) as held:
            if held is not None:
                path.unlink(missing_ok=True)


def delete_tree(path: str | Path) -> None:
    """Delete a file or a tree, however deep and immutable; concurrent deletion is no error.

    Directories are moved to the top before they are emptied: a layer may have been made deeper than a path
    can say or a stack can follow. What is mounted in the tree stays and is an error (EBUSY).
    """
    try:
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not is_directory:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        pending = _empty(top, top)
        while pending:
            name = pending.pop()
            with contextlib.suppress(FileNotFoundError):
                directory = os.open(
                    name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top
                )
                try:
                    pending += _empty(directory, top)
                finally:
                    os.close(directory)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _empty(directory: int, top: int) -> list[str]:
    """Delete the files of an open directory and move its directories to ``top``; returns their new names."""
    moved = []
    with os.scandir(directory) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in entries:
        new = f".{secrets.token_hex(8)}" if is_directory else ""
        if _take_out(directory, name, top, new):
            moved.append(new)
    return moved


def _take_out(directory: int, name: str, top: int, new: str) -> bool:
    """Unlink a file, or move a directory to its ``new`` name; whether there is something of that name now."""
    if new:
        with contextlib.suppress(OSError):  # most are empty
            os.rmdir(name, dir_fd=directory)
            return False
    for forced in (False, True):
        try:
            if new:
                os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)
            else:
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        except PermissionError:
            if forced:
                raise
            here = f"/proc/self/fd/{directory}"
            _make_mutable(f"{here}/.")
            _make_mutable(f"{here}/{name}")
        else:
            return bool(new)
    raise AssertionError("the loop returns or raises")


def _make_mutable(path: str) -> None:
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            files.clear_flags(path)
