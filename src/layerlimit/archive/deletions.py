"""How each form records what a layer deletes: one class for each."""

from __future__ import annotations

import errno
import os
import stat

from layerlimit.archive.contain import Deletions, Directory, Tree
from layerlimit.archive.form import (
    AUFS_WHITEOUT,
    OPAQUE_MARKER,
    OPAQUE_VALUE,
    WHITEOUT_PREFIX,
    Form,
    opaque_attribute,
)
from layerlimit.linux import xattr

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Overlay:
    """Character devices 0:0 and opaque attributes, as overlayfs writes them itself."""

    recorded = True
    beside = False
    in_place = True

    def __init__(self, *, userxattr: bool) -> None:
        self._attribute = opaque_attribute(userxattr=userxattr)
        self.hides_top = False

    def is_whiteout(self, status: os.stat_result) -> bool:
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def delete(self, tree: Tree, directory: Directory, name: bytes) -> None:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory.fd)
        tree.wrote(directory, name)

    def lift(self, directory: Directory, name: bytes) -> bool:
        return False

    def hide(self, tree: Tree, directory: Directory) -> None:
        xattr.set_xattr(directory.fd, self._attribute, OPAQUE_VALUE)
        if directory.top:
            self.hides_top = True

    def finish(self, tree: Tree) -> None:
        """Roots are always merged, opaque or not (ovl_get_root): hide the names of lower roots one by one."""
        if not self.hides_top:
            return
        for name in sorted({name for lower in tree.lowers for name in os.listdir(os.fsencode(lower))}):
            try:
                status = os.stat(name, dir_fd=tree.fd, follow_symlinks=False)
            except FileNotFoundError:
                self.delete(tree, tree.top, name)
                continue
            if stat.S_ISDIR(status.st_mode):
                tree.begin()
                self.hide(tree, tree.opened(name, tree.top, name))


class Aufs:
    """The marks of layer tars, on disk: empty files, all one inode where the branch has AUFS's own."""

    recorded = True
    beside = True
    in_place = False

    def is_whiteout(self, status: os.stat_result) -> bool:
        return False

    def delete(self, tree: Tree, directory: Directory, name: bytes) -> None:
        self._mark(tree, directory, WHITEOUT_PREFIX + name)
        directory.mark()

    def lift(self, directory: Directory, name: bytes) -> bool:
        if not directory.marked:
            return False
        try:
            os.unlink(WHITEOUT_PREFIX + name, dir_fd=directory.fd)
        except (FileNotFoundError, IsADirectoryError):
            return False
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no mark can have that name
                return False
            raise
        return True

    def hide(self, tree: Tree, directory: Directory) -> None:
        self._mark(tree, directory, OPAQUE_MARKER)

    def finish(self, tree: Tree) -> None:
        pass

    def _mark(self, tree: Tree, directory: Directory, mark: bytes) -> None:
        tree.wrote(directory, mark)
        try:
            self._make(tree, directory, mark)
        except FileExistsError:
            if stat.S_ISREG(os.stat(mark, dir_fd=directory.fd, follow_symlinks=False).st_mode):
                return
            tree.remove(directory, mark)  # a directory that an archive gave a mark's name
            self._make(tree, directory, mark)

    def _make(self, tree: Tree, directory: Directory, mark: bytes) -> None:
        try:
            os.link(AUFS_WHITEOUT, mark, src_dir_fd=tree.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except OSError as error:
            # AUFS has not made its inode yet, or the inode has all the links it can have.
            if error.errno not in (errno.ENOENT, errno.EMLINK):
                raise
            os.close(os.open(mark, _CREATE, 0o444, dir_fd=directory.fd))


class Flat:
    """A whole tree: what is deleted is gone, and nothing is left to say so."""

    recorded = False
    beside = False
    in_place = False

    def is_whiteout(self, status: os.stat_result) -> bool:
        return False

    def delete(self, tree: Tree, directory: Directory, name: bytes) -> None:
        pass

    def lift(self, directory: Directory, name: bytes) -> bool:
        return False

    def hide(self, tree: Tree, directory: Directory) -> None:
        pass

    def finish(self, tree: Tree) -> None:
        pass


def deletions_of(form: Form, *, userxattr: bool) -> Deletions:
    """The way ``form`` records deletions."""
    match form:
        case Form.OVERLAY:
            return Overlay(userxattr=userxattr)
        case Form.AUFS:
            return Aufs()
        case Form.FLAT:
            return Flat()
