"""Random layers: what a process does to a mounted overlay, and the upper directory that comes of it."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hypothesis import strategies as st

from tests.archive import trees

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]

#: One deed of a process: a name, and two numbers that pick what it is done to.
Deed = tuple[str, int, int]

#: Does it to a path, knowing all paths; returns what was done, or "" when it does not apply.
Doing = Callable[[bytes, Sequence[bytes], int], str]

DEEDS: dict[str, Doing] = {}
ON_DIRECTORIES = {"remove tree", "opaque"}


def _deed(function: Doing) -> Doing:
    DEEDS[function.__name__.strip("_").replace("_", " ")] = function
    return function


@contextmanager
def overlay(base: Path, lowers: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """A mounted overlay over ``lowers`` (nearest first); yields (merged, upper), both below ``base``."""
    paths = [base / name for name in ("merged", "upper", "work")]
    for path in paths:
        path.mkdir()
    merged, upper, work = paths
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work}"
    options += ",index=off,metacopy=off,redirect_dir=nofollow"
    if _libc.mount(b"overlay", os.fsencode(merged), b"overlay", 0, os.fsencode(options)) != 0:
        raise OSError(ctypes.get_errno(), "mount of an overlay", str(merged))
    try:
        yield merged, upper
    finally:
        if _libc.umount2(os.fsencode(merged), 0) != 0:
            raise OSError(ctypes.get_errno(), "umount", str(merged))
        shutil.rmtree(work)


_NAMES = [
    "remove",
    "remove tree",
    "create",
    "make again",
    "directory again",
    "rewrite",
    "link",
    "rename",
    "chmod",
    "opaque",
]

#: Each deed at most once, so that none is rare; two lists in a row do things twice.
deeds: st.SearchStrategy[list[Deed]] = st.lists(
    st.tuples(st.sampled_from(_NAMES), st.integers(0, 30), st.integers(0, 5)),
    min_size=2,
    max_size=10,
    unique_by=lambda deed: deed[0],
)


def perform(root: Path, todo: Sequence[Deed]) -> set[str]:
    """Do what can be done of ``todo`` in the tree ``root``; returns what was."""
    done = set()
    for name, which, number in todo:
        top = os.fsencode(root)
        paths = sorted(os.path.join(top, path) for path in trees.scan(root))
        fitting = [path for path in paths if _is_directory(path)] if name in ON_DIRECTORIES else paths
        if fitting:
            done.add(DEEDS[name](fitting[which % len(fitting)], paths, number))
    return done - {""}


def _is_directory(path: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _parent(path: bytes, paths: Sequence[bytes], number: int) -> bytes:
    directories = sorted({os.path.dirname(path) for path in paths} | {p for p in paths if _is_directory(p)})
    return directories[number % len(directories)]


@_deed
def _remove(path: bytes, paths: Sequence[bytes], number: int) -> str:
    if _is_directory(path):
        return ""
    os.unlink(path)
    return "removed a file"


@_deed
def _remove_tree(path: bytes, paths: Sequence[bytes], number: int) -> str:
    shutil.rmtree(path)
    return "removed a tree"


@_deed
def _create(path: bytes, paths: Sequence[bytes], number: int) -> str:
    name = os.path.join(_parent(path, paths, number), b"new%d" % number)
    with suppress(FileExistsError, IsADirectoryError):
        with open(name, "xb") as out:
            out.write(b"new" * number)
        return "created a file"
    return ""


@_deed
def _make_again(path: bytes, paths: Sequence[bytes], number: int) -> str:
    """The same name again, for another file."""
    if _is_directory(path):
        return ""
    os.unlink(path)
    if number % 2:
        os.symlink(b"elsewhere", path)
    else:
        with open(path, "xb") as out:
            out.write(b"again")
    return "whiteout and the same name again"


@_deed
def _directory_again(path: bytes, paths: Sequence[bytes], number: int) -> str:
    if _is_directory(path):
        return ""
    os.unlink(path)
    os.mkdir(path)
    return "a directory in place of a file"


@_deed
def _rewrite(path: bytes, paths: Sequence[bytes], number: int) -> str:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return ""
    with open(path, "wb") as out:
        out.write(b"rewritten" * number)
    return "rewrote a file"


@_deed
def _link(path: bytes, paths: Sequence[bytes], number: int) -> str:
    if _is_directory(path):
        return ""
    name = os.path.join(_parent(path, paths, number), b"link%d" % number)
    with suppress(FileExistsError):
        os.link(path, name, follow_symlinks=False)
        return "linked a file"
    return ""


@_deed
def _rename(path: bytes, paths: Sequence[bytes], number: int) -> str:
    if _is_directory(path):
        return ""  # EXDEV without redirect_dir, and mv(1) copies
    target = os.path.join(_parent(path, paths, number), b"renamed%d" % number)
    if not os.path.isdir(target):
        os.rename(path, target)
        return "renamed a file"
    return ""


@_deed
def _chmod(path: bytes, paths: Sequence[bytes], number: int) -> str:
    if os.path.islink(path):
        return ""
    os.chmod(path, 0o700 + number)
    return "changed a directory's mode" if _is_directory(path) else "changed a file's mode"


@_deed
def _opaque(path: bytes, paths: Sequence[bytes], number: int) -> str:
    """A directory removed and made anew, with one of its old names in it."""
    names = sorted(os.listdir(path))
    shutil.rmtree(path)
    os.mkdir(path)
    if not names:
        return ""
    kept = os.path.join(path, names[number % len(names)])
    with open(kept, "xb") as out:
        out.write(b"kept name")
    return "opaque over a directory with content"
