"""mount(2), umount2(2) and the descriptor-based calls, on the real kernel."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux import mount
from layerlimit.linux.mount import FsContext, bind, clone_tree, unmount
from layerlimit.linux.mountinfo import read
from layerlimit.linux.statx import is_mount_point, statx

pytestmark = pytest.mark.lane("root")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "target"
    made.mkdir()
    return made


def tmpfs(target: Path) -> None:
    with FsContext("tmpfs") as context:
        context.set_string("size", "1m")
        context.create()
        with context.mount() as made:
            made.attach(target)


def test_a_detached_mount_is_seen_only_once_it_is_attached(target: Path) -> None:
    with FsContext("tmpfs") as context:
        context.create()
        with context.mount(attributes=mount.MOUNT_ATTR_NOEXEC) as made:
            (Path("/proc/self/fd") / str(made.fd) / "inside").touch()
            assert not is_mount_point(target)
            made.attach(target)
            assert os.listdir(target) == ["inside"]
    assert is_mount_point(target)
    assert os.statvfs(target).f_flag & os.ST_NOEXEC
    unmount(target)
    assert os.listdir(target) == []


def test_what_was_never_attached_is_gone_with_its_descriptors(tmp_path: Path) -> None:
    before = {entry.mount_id for entry in read()}
    open_before = os.listdir("/proc/self/fd")
    with FsContext("tmpfs") as context:
        context.create()
        with context.mount() as made:
            pass
    made.close()  # once more does nothing
    context.close()
    assert {entry.mount_id for entry in read()} <= before
    assert os.listdir("/proc/self/fd") == open_before


def test_an_unknown_file_system(target: Path) -> None:
    with pytest.raises(OSError, match="fsopen: No such device") as caught:
        FsContext("no-such-fs")
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, "no-such-fs")
    with pytest.raises(OSError, match="mount: No such device") as old:
        mount.mount("none", target, "no-such-fs")
    assert (old.value.errno, old.value.filename) == (errno.ENODEV, os.fspath(target))


def test_the_kernels_own_words_are_in_the_error() -> None:
    with FsContext("tmpfs") as context:
        with pytest.raises(
            OSError, match=r"fsconfig\(size\): Invalid argument: tmpfs: Bad value for 'size'"
        ) as caught:
            context.set_string("size", "many")
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="Unknown parameter 'colour'"):
            context.set_flag("colour")
        assert context.messages() == []  # each message is told once


def test_fsconfig_strings_end_at_255_bytes(tmp_path: Path) -> None:
    with FsContext("tmpfs") as context:
        context.set_string("source", "s" * mount.FSCONFIG_STRING_MAX)
    with FsContext("tmpfs") as context:
        with pytest.raises(OSError, match="fsconfig") as caught:
            context.set_string("source", "s" * (mount.FSCONFIG_STRING_MAX + 1))
        assert caught.value.errno == errno.EINVAL


def test_mount2_data_that_the_kernel_would_cut_is_refused(target: Path) -> None:
    most = ("nr_inodes=64," * mount.PAGE_SIZE)[: mount.MOUNT_DATA_MAX - 1] + ","
    with pytest.raises(ValueError, match=f"{mount.MOUNT_DATA_MAX + 1} bytes"):
        mount.mount("none", target, "tmpfs", data="x" + most)
    assert not is_mount_point(target)
    mount.mount("none", target, "tmpfs", data=("nr_inodes=64," * 300 + "size=1m")[-mount.MOUNT_DATA_MAX :])
    unmount(target)


def test_mount2_mounts_and_remounts(target: Path) -> None:
    mount.mount("source", target, "tmpfs", flags=mount.MS_NODEV, data=b"size=1m")
    try:
        (target / "file").touch()
        mount.mount(None, target, None, flags=mount.MS_REMOUNT | mount.MS_RDONLY)
        with pytest.raises(OSError, match="Read-only"):
            (target / "other").touch()
    finally:
        unmount(target)


def test_reconfigure_a_mounted_file_system(target: Path) -> None:
    tmpfs(target)
    try:
        with FsContext.pick(target) as context:
            context.set_string("size", "2m")
            context.reconfigure()
        found = os.statvfs(target)
        assert found.f_blocks * found.f_frsize == 2 << 20
        with FsContext.pick(target) as context, pytest.raises(OSError, match="size") as caught:
            context.set_string("size", "1x")
        assert caught.value.errno == errno.EINVAL
    finally:
        unmount(target)


def test_a_read_only_bind_is_never_writable(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("kept")
    bind(source, target, read_only=True)
    try:
        for attempt in (
            lambda: (target / "new").touch(),
            lambda: (target / "file").write_text("changed"),
            lambda: (target / "file").unlink(),
        ):
            with pytest.raises(OSError, match="Read-only") as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        (source / "new").touch()  # the source itself is untouched by it
        assert (target / "new").exists()
    finally:
        unmount(target)


@pytest.mark.parametrize("recursive", [False, True])
def test_recursion_decides_about_what_is_mounted_below(tmp_path: Path, target: Path, recursive: bool) -> None:
    below = tmp_path / "source" / "below"
    below.mkdir(parents=True)
    tmpfs(below)
    try:
        (below / "file").touch()
        bind(tmp_path / "source", target, recursive=recursive, read_only=True)
        try:
            assert is_mount_point(target / "below") is recursive
            assert (target / "below" / "file").exists() is recursive
            with pytest.raises(OSError, match="Read-only"):
                (target / "below" / "other").touch()
        finally:
            if recursive:
                unmount(target / "below")
            unmount(target)
    finally:
        unmount(below)


def test_attributes_of_a_live_mount(target: Path) -> None:
    tmpfs(target)
    try:
        mount.set_attributes(target, set_=mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID)
        assert os.statvfs(target).f_flag & (os.ST_RDONLY | os.ST_NOSUID) == os.ST_RDONLY | os.ST_NOSUID
        mount.set_attributes(target, clear=mount.MOUNT_ATTR_RDONLY)
        assert os.statvfs(target).f_flag & (os.ST_RDONLY | os.ST_NOSUID) == os.ST_NOSUID
        for kind, shown in ((mount.MS_SHARED, True), (mount.MS_PRIVATE, False)):
            mount.set_propagation(target, kind)
            (entry,) = (entry for entry in read() if entry.mount_point == target)
            assert any(field.startswith("shared:") for field in entry.propagation) is shown
    finally:
        unmount(target)
    with pytest.raises(OSError, match="mount_setattr") as caught:
        mount.set_attributes(target, set_=mount.MOUNT_ATTR_RDONLY)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, os.fspath(target))


def test_nothing_follows_a_symbolic_link(tmp_path: Path, target: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    tmpfs(target)
    try:
        with pytest.raises(OSError, match="umount2") as caught:
            unmount(link)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="fspick"):
            FsContext.pick(link)
        with clone_tree(target) as tree, pytest.raises(OSError, match="move_mount"):
            tree.attach(link)
        assert is_mount_point(target)
    finally:
        unmount(target)


def test_a_failed_attach_leaves_nothing(tmp_path: Path) -> None:
    before = {entry.mount_id for entry in read()}
    with pytest.raises(FileNotFoundError, match="move_mount: No such file") as caught:
        bind(tmp_path, tmp_path / "none")
    assert caught.value.filename == os.fspath(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="open_tree"):
        clone_tree(tmp_path / "none")
    assert {entry.mount_id for entry in read()} <= before


def test_busy_and_lazy(target: Path) -> None:
    tmpfs(target)
    with (target / "held").open("w") as held:
        with pytest.raises(OSError, match="umount2: Device or resource busy") as caught:
            unmount(target)
        assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, os.fspath(target))
        unmount(target, flags=mount.MNT_DETACH)
        assert not is_mount_point(target)
        held.write("still there")
    with pytest.raises(OSError, match="umount2") as missing:
        unmount(target)
    assert missing.value.errno == errno.EINVAL


def test_attach_goes_over_what_is_mounted(target: Path) -> None:
    tmpfs(target)
    lower = statx(target).mount_id
    tmpfs(target)
    upper = statx(target).mount_id
    assert upper != lower
    unmount(target)
    assert statx(target).mount_id == lower
    unmount(target)


def test_a_process_that_dies_takes_its_detached_mounts_along(tmp_path: Path) -> None:
    image = tmp_path / "source"
    image.mkdir()
    script = (
        "import os, sys\n"
        "from layerlimit.linux.mount import clone_tree\n"
        "tree = clone_tree(sys.argv[1])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, image], check=False)
    assert done.returncode == -9
    image.rmdir()
    assert image not in {entry.root for entry in read()}


def test_a_path_with_a_nul_is_refused_not_cut(target: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        unmount(os.fspath(target) + "\0more")
