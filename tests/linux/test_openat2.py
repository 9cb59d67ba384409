"""openat2: a path stays below its directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlimit.linux import openat2 as module
from layerlimit.linux.openat2 import openat2


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A directory ``root`` with links that lead out of it, opened; beside it lies ``secret``."""
    (tmp_path / "secret").write_text("outside")
    inside = tmp_path / "root"
    (inside / "dir").mkdir(parents=True)
    (inside / "secret").write_text("inside")
    (inside / "up").symlink_to("../secret")
    (inside / "absolute").symlink_to("/secret")
    (inside / "dir" / "far").symlink_to("../../../../../secret")
    (inside / "loop").symlink_to("loop")
    fd = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def content(root: int, path: bytes, resolve: int) -> bytes:
    fd = openat2(root, path, os.O_RDONLY, resolve=resolve)
    try:
        assert not os.get_inheritable(fd)
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"secret", b"up", b"absolute", b"dir/far", b"/secret", b"../../secret"])
def test_in_root_no_name_leads_out(root: int, path: bytes) -> None:
    assert content(root, path, module.RESOLVE_IN_ROOT) == b"inside"


@pytest.mark.parametrize("path", [b"up", b"absolute", b"dir/far", b"/secret", b"../secret"])
def test_beneath_refuses_what_leads_out(root: int, path: bytes) -> None:
    with pytest.raises(OSError, match="openat2") as caught:
        content(root, path, module.RESOLVE_BENEATH)
    assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, path)
    assert content(root, b"dir/../secret", module.RESOLVE_BENEATH) == b"inside"


@pytest.mark.parametrize(
    ("path", "resolve", "code"),
    [
        (b"absolute", module.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        (b"loop", module.RESOLVE_IN_ROOT, errno.ELOOP),
        (b"none", module.RESOLVE_IN_ROOT, errno.ENOENT),
        (b"secret/below", module.RESOLVE_IN_ROOT, errno.ENOTDIR),
    ],
)
def test_errors(root: int, path: bytes, resolve: int, code: int) -> None:
    with pytest.raises(OSError, match="openat2") as caught:
        content(root, path, resolve)
    assert caught.value.errno == code


def test_magic_links_and_mounts() -> None:
    proc = os.open("/proc", os.O_PATH)
    slash = os.open("/", os.O_PATH)
    try:
        with pytest.raises(OSError, match="openat2") as magic:
            openat2(proc, b"self/root", os.O_PATH, resolve=module.RESOLVE_NO_MAGICLINKS)
        assert magic.value.errno == errno.ELOOP
        with pytest.raises(OSError, match="openat2") as crossing:
            openat2(slash, b"proc/self", os.O_PATH, resolve=module.RESOLVE_NO_XDEV)
        assert crossing.value.errno == errno.EXDEV
    finally:
        os.close(proc)
        os.close(slash)


def test_a_file_is_made_with_its_mode(root: int, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(openat2(root, b"/dir/new", flags, mode=0o640, resolve=module.RESOLVE_IN_ROOT))
    finally:
        os.umask(before)
    assert (tmp_path / "root" / "dir" / "new").stat().st_mode & 0o7777 == 0o640
