"""AUFS: the exact sequence of calls, held against a recorder at the border to the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from layerlimit.errors import Busy, InvalidArgument, NotSupported, OutOfSpace, PermissionDenied
from layerlimit.linux.libc import os_error
from layerlimit.linux.mount import MS_RDONLY, MS_REMOUNT
from layerlimit.linux.statfs import (
    AUFS_MAGIC,
    BTRFS_MAGIC,
    ECRYPTFS_MAGIC,
    EXT4_MAGIC,
    NFS_MAGIC,
    OVERLAY_MAGIC,
    TMPFS_MAGIC,
    Statfs,
    statfs,
)
from layerlimit.union import Aufs, Mount, Stack
from layerlimit.union.aufs import UNFINISHED
from layerlimit.union.aufs_options import OPTIONS_MAX
from tests.union import stacks
from tests.union.stacks import mounted

TARGET = Path("/r/mnt/2")
STACK = Stack((Path("/r/diff/1"), Path("/r/diff/0")), Path("/r/diff/2"))
TAIL = "dio,xino=/dev/shm/aufs.xino,dirperm1"
PLAIN = Statfs(
    type=EXT4_MAGIC,
    bsize=4096,
    frsize=4096,
    blocks=9,
    bfree=9,
    bavail=9,
    files=9,
    ffree=9,
    flags=0,
)
TMPFS = replace(PLAIN, type=TMPFS_MAGIC)


def anywhere(path: Path) -> Statfs:
    """A machine with a tmpfs at /dev/shm and ext4 elsewhere."""
    return TMPFS if path == Path("/dev/shm") else PLAIN


@dataclass
class Recorder:
    """A kernel with AUFS that does nothing but write down what it is asked.

    ``fail`` may raise instead of doing. dirperm1's trial mounts lie below ``layerlimit-aufs-…`` directories
    and are kept apart in ``trials``.
    """

    data_max: int = 4095
    fail: Callable[[str, str], None] = lambda call, detail: None
    file_systems: Callable[[Path], Statfs] = anywhere
    initial: bool = True
    program: Path | None = None
    exits: list[int] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    trials: list[str] = field(default_factory=list)
    mounts: dict[Path, int] = field(default_factory=dict)
    inside: int = 0

    def mount(self, target: Path, *, flags: int, data: str) -> None:
        assert len(os.fsencode(data)) <= self.data_max
        trial = "layerlimit-aufs-" in os.fspath(target)
        if trial:
            self.trials.append(data.rpartition(",")[2])
        else:
            self.calls.append(("mount", target, flags, data))
        assert flags & MS_REMOUNT or self.inside == 1, "the first mount is made alone"
        self.fail("trial" if trial else "mount", data)
        assert bool(flags & MS_REMOUNT) == (target in self.mounts)
        self.mounts[target] = flags & ~MS_REMOUNT

    def unmount(self, target: Path) -> None:
        if "layerlimit-aufs-" not in os.fspath(target):
            self.calls.append(("unmount", target))
            self.fail("unmount", os.fspath(target))
        if target not in self.mounts:
            raise os_error(errno.EINVAL, "umount2", target)
        del self.mounts[target]

    def statfs(self, path: Path) -> Statfs:
        if path in self.mounts:
            return replace(PLAIN, type=AUFS_MAGIC, flags=self.mounts[path])
        return self.file_systems(path)

    def is_mount_point(self, path: Path) -> bool:
        return path in self.mounts

    def in_initial_user_namespace(self) -> bool:
        return self.initial

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def auplink(self) -> Path | None:
        return self.program

    def run(self, *command: str) -> int:
        self.calls.append(("run", *command))
        return self.exits.pop(0) if self.exits else 0


def aufs(kernel: Recorder, slept: list[float] | None = None) -> Aufs:
    return Aufs(kernel=kernel, sleep=([] if slept is None else slept).append)


def failing(*, call: str = "mount", when: str = "", code: int, times: int = 1) -> Callable[[str, str], None]:
    """Fail the first ``times`` calls whose data contains ``when``."""
    left = [times]

    def fail(made: str, detail: str) -> None:
        if made == call and when in detail and left[0]:
            left[0] -= 1
            raise os_error(code, made, detail)

    return fail


# ---- what is mounted ----


def test_one_call_for_a_short_stack() -> None:
    kernel = Recorder()
    union = aufs(kernel)
    union.mount(STACK, TARGET)
    assert kernel.calls == [
        ("mount", TARGET, 0, f"br:/r/diff/2=rw:/r/diff/1=ro+wh:/r/diff/0=ro+wh,{TAIL}"),
    ]
    assert union.is_mounted(TARGET)


def test_a_view_has_no_writable_branch() -> None:
    kernel = Recorder()
    aufs(kernel).mount(Stack(STACK.lowers), TARGET)
    assert kernel.calls == [
        ("mount", TARGET, MS_RDONLY, f"br:/r/diff/1=ro+wh:/r/diff/0=ro+wh,{TAIL}"),
    ]


def test_read_only_shows_the_upper_as_one_more_lower() -> None:
    kernel = Recorder()
    aufs(kernel).mount(STACK, TARGET, read_only=True)
    assert kernel.calls == [
        ("mount", TARGET, MS_RDONLY, f"br:/r/diff/2=ro+wh:/r/diff/1=ro+wh:/r/diff/0=ro+wh,{TAIL}"),
    ]


@pytest.mark.parametrize("flags", [0, MS_RDONLY])
def test_what_does_not_fit_is_appended_and_marked_until_the_end(flags: int) -> None:
    lowers = tuple(Path("/var/lib/docker/aufs/diff") / stacks.sha256(number) for number in range(126))
    kernel = Recorder()
    union = aufs(kernel)
    union.mount(Stack(lowers[1:], lowers[0]), TARGET, read_only=bool(flags))
    made = [(call[0], call[1], call[2]) for call in kernel.calls]
    assert made == [
        ("mount", TARGET, flags | UNFINISHED),
        ("mount", TARGET, flags | MS_REMOUNT | UNFINISHED),
        ("mount", TARGET, flags | MS_REMOUNT | UNFINISHED),
        ("mount", TARGET, flags | MS_REMOUNT),
    ]
    first, *rest = (call[3] for call in kernel.calls)
    named = first.removeprefix("br:").removesuffix("," + TAIL).split(":")
    for data in rest:
        named += [option.removeprefix("append:") for option in data.split(",")]
    kind = "ro+wh" if flags else "rw"
    assert named == [f"{lowers[0]}={kind}", *(f"{lower}=ro+wh" for lower in lowers[1:])]
    assert kernel.mounts == {TARGET: flags}


def test_short_names_are_cut_by_count() -> None:
    kernel = Recorder()
    aufs(kernel).mount(Stack(tuple(Path(f"/{number}") for number in range(100)), Path("/u")), TARGET)
    first, second = (call[3] for call in kernel.calls)
    assert first.count(":") + 3 == OPTIONS_MAX
    assert first.count("=ro+wh") + second.count("=ro+wh") == 100


def test_names_that_aufs_would_split_are_reached_by_descriptor(tmp_path: Path) -> None:
    upper, special, plain = branches = [tmp_path / name for name in ("a,b=rw", "a:b", "plain")]
    for path in branches:
        path.mkdir()
    opened: dict[str, str] = {}

    def look(call: str, data: str) -> None:
        if call == "mount":
            names = [branch.rpartition("=")[0] for branch in data[3:].split(",")[0].split(":")]
            opened.update((name, os.path.realpath(name)) for name in names)

    descriptors = os.listdir("/proc/self/fd")
    aufs(Recorder(fail=look)).mount(Stack((special, plain), upper), tmp_path / "target")
    assert list(opened.values()) == [os.fspath(path) for path in branches]
    assert os.fspath(plain) in opened
    assert sum(name.startswith("/proc/self/fd/") for name in opened) == 2
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_path_that_never_fits_is_refused_before_any_mount() -> None:
    kernel = Recorder()
    stack = Stack((Path("/r/0"), Path("/" + "x" * 4095)), Path("/r/1"))
    with pytest.raises(InvalidArgument, match="does not fit the page"):
        aufs(kernel).mount(stack, TARGET)
    assert kernel.calls == []


# ---- failures ----


def test_a_failed_append_leaves_nothing() -> None:
    lowers = tuple(Path("/r/diff") / stacks.sha256(number) for number in range(100))
    kernel = Recorder(fail=failing(when=f"append:{lowers[99]}", code=errno.EINVAL))
    with pytest.raises(InvalidArgument, match=r"cannot mount 101 AUFS branches at /r/mnt/2") as caught:
        aufs(kernel).mount(Stack(lowers, Path("/r/u")), TARGET)
    assert kernel.mounts == {}
    assert kernel.calls[-1] == ("unmount", TARGET)
    assert "dmesg" in caught.value.hint


def test_an_interrupted_append_leaves_nothing() -> None:
    def interrupt(call: str, data: str) -> None:
        if data.startswith("append:"):
            raise KeyboardInterrupt

    lowers = tuple(Path("/r/diff") / stacks.sha256(number) for number in range(100))
    kernel = Recorder(fail=interrupt)
    with pytest.raises(KeyboardInterrupt):
        aufs(kernel).mount(Stack(lowers, Path("/r/u")), TARGET)
    assert kernel.mounts == {}


def test_what_a_killed_process_left_is_not_mounted_and_is_replaced() -> None:
    kernel = Recorder(mounts={TARGET: UNFINISHED})
    union = aufs(kernel)
    assert not union.is_mounted(TARGET)
    union.mount(STACK, TARGET)
    assert [call[0] for call in kernel.calls] == ["unmount", "mount"]
    assert union.is_mounted(TARGET)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENODEV, NotSupported, "this kernel has no AUFS"),
        (errno.EPERM, PermissionDenied, "Operation not permitted"),
        (errno.EINVAL, InvalidArgument, "Invalid argument"),
        (errno.ENOSPC, NotSupported, "cannot join 3 branches"),
    ],
)
def test_errors_are_typed(code: int, kind: type[Exception], words: str) -> None:
    kernel = Recorder(fail=failing(code=code))
    with pytest.raises(kind, match=words) as caught:
        aufs(kernel).mount(STACK, TARGET)
    assert isinstance(caught.value.__cause__, OSError)
    assert kernel.mounts == {}


@pytest.mark.parametrize("full", [replace(PLAIN, bavail=0), replace(PLAIN, ffree=0)])
def test_no_space_for_the_upper_is_told_from_too_many_branches(full: Statfs) -> None:
    kernel = Recorder(
        fail=failing(code=errno.ENOSPC),
        file_systems=lambda path: full if path == STACK.upper else anywhere(path),
    )
    with pytest.raises(OutOfSpace, match=r"the file system of /r/diff/2 is full"):
        aufs(kernel).mount(STACK, TARGET)


def test_inside_a_user_namespace_it_is_refused() -> None:
    kernel = Recorder(initial=False)
    with pytest.raises(NotSupported, match="user namespace"):
        aufs(kernel).mount(STACK, TARGET)
    assert kernel.calls == []


@pytest.mark.parametrize("magic", [AUFS_MAGIC, BTRFS_MAGIC, ECRYPTFS_MAGIC, OVERLAY_MAGIC])
def test_file_systems_it_cannot_use(magic: int) -> None:
    kernel = Recorder(file_systems=lambda path: replace(PLAIN, type=magic))
    with pytest.raises(NotSupported, match="AUFS cannot use"):
        aufs(kernel).check_backing(Path("/r"))
    aufs(Recorder()).check_backing(Path("/r"))


# ---- the inode number table ----


def missing_shm(path: Path) -> Statfs:
    if path == Path("/dev/shm"):
        raise os_error(errno.ENOENT, "statfs", path)
    return PLAIN


@pytest.mark.parametrize(
    ("file_systems", "directory"),
    [
        (anywhere, "/dev/shm"),
        (missing_shm, "/run"),
        (lambda path: PLAIN if path == Path("/tmp") else replace(PLAIN, type=AUFS_MAGIC), "/tmp"),
    ],
)
def test_the_table_lies_where_there_is_a_place(
    file_systems: Callable[[Path], Statfs], directory: str
) -> None:
    kernel = Recorder(file_systems=file_systems)
    aufs(kernel)._mount_first(["/a=rw"], TARGET, 0)
    assert kernel.calls[0][3] == f"br:/a=rw,dio,xino={directory}/aufs.xino,dirperm1"


def test_without_any_place_for_the_table() -> None:
    kernel = Recorder(file_systems=lambda path: PLAIN if path == TARGET else replace(PLAIN, type=NFS_MAGIC))
    with pytest.raises(NotSupported, match="no place for its inode number table"):
        aufs(kernel).mount(STACK, TARGET)


def test_a_lost_race_for_the_table_is_run_again() -> None:
    slept: list[float] = []
    kernel = Recorder(fail=failing(code=errno.EEXIST, times=2))
    union = aufs(kernel, slept)
    union.mount(STACK, TARGET)
    assert len(kernel.calls) == 3
    assert kernel.calls[0] == kernel.calls[2]
    assert len(slept) == 2
    assert union.is_mounted(TARGET)


def test_a_file_that_stays_in_the_way_is_avoided() -> None:
    kernel = Recorder(fail=failing(when="/dev/shm/aufs.xino,", code=errno.EEXIST, times=99))
    aufs(kernel).mount(STACK, TARGET)
    data = kernel.calls[-1][3]
    assert "xino=/dev/shm/aufs-" in data
    assert TARGET in kernel.mounts


# ---- dirperm1 ----


def test_dirperm1_is_tried_once_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path))
    kernel = Recorder()
    union = aufs(kernel)
    assert union.status() == [("Dirperm1 Supported", "true")]
    union.mount(STACK, TARGET)
    assert kernel.trials == ["dirperm1"]
    assert kernel.mounts == {TARGET: 0}
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_without_dirperm1() -> None:
    kernel = Recorder(fail=failing(call="trial", when="dirperm1", code=errno.EINVAL))
    union = aufs(kernel)
    union.mount(STACK, TARGET)
    assert union.status() == [("Dirperm1 Supported", "false")]
    assert kernel.trials == ["dirperm1", "xino=/dev/shm/aufs.xino"]
    assert kernel.calls[0][3].endswith(",dio,xino=/dev/shm/aufs.xino")


def test_a_place_where_aufs_cannot_mount_says_nothing_about_dirperm1() -> None:
    kernel = Recorder(fail=failing(call="trial", code=errno.EINVAL, times=2))
    assert aufs(kernel).status() == [("Dirperm1 Supported", "true")]
    assert kernel.trials == ["dirperm1", "xino=/dev/shm/aufs.xino", "dirperm1"]


# ---- unmounting ----


def test_pseudo_links_are_flushed_before_unmounting() -> None:
    kernel = Recorder(program=Path("/sbin/auplink"), mounts={TARGET: 0})
    aufs(kernel).unmount(TARGET)
    assert kernel.calls == [("run", "/sbin/auplink", "/r/mnt/2", "flush"), ("unmount", TARGET)]
    assert kernel.mounts == {}


def test_without_aufs_tools_there_is_no_flush() -> None:
    kernel = Recorder(mounts={TARGET: 0})
    aufs(kernel).unmount(TARGET)
    assert kernel.calls == [("unmount", TARGET)]


def test_what_is_no_aufs_is_not_flushed() -> None:
    kernel = Recorder(program=Path("/sbin/auplink"))
    aufs(kernel).unmount(TARGET)
    assert kernel.calls == [("unmount", TARGET)]


@pytest.mark.parametrize(("exits", "runs"), [([22, 22, 0], 3), ([22] * 9, 5), ([1, 0], 1), ([22, 1, 0], 2)])
def test_a_flush_is_run_again_only_after_22(
    exits: list[int], runs: int, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Recorder(program=Path("/sbin/auplink"), exits=list(exits), mounts={TARGET: 0})
    aufs(kernel).unmount(TARGET)
    assert [call[0] for call in kernel.calls] == ["run"] * runs + ["unmount"]
    assert kernel.mounts == {}
    assert ("flush ended with" in caplog.text) is (exits[runs - 1] != 0)


@pytest.mark.parametrize("times", [1, 4, 5])
def test_a_busy_mount_is_tried_five_times(times: int) -> None:
    slept: list[float] = []
    kernel = Recorder(mounts={TARGET: 0}, fail=failing(call="unmount", code=errno.EBUSY, times=times))
    union = aufs(kernel, slept)
    if times < 5:
        union.unmount(TARGET)
        assert kernel.mounts == {}
    else:
        with pytest.raises(Busy, match=r"/r/mnt/2 is in use"):
            union.unmount(TARGET)
        assert kernel.mounts == {TARGET: 0}
    assert slept == [0.1] * min(times, 4)


def test_mounted_is_what_statfs_says() -> None:
    kernel = Recorder(file_systems=missing_shm)
    union = aufs(kernel)
    assert not union.is_mounted(TARGET)
    assert not union.is_mounted(Path("/dev/shm"))
    kernel.mounts[TARGET] = MS_RDONLY
    assert union.is_mounted(TARGET)


# ---- what engines are told ----


def test_what_an_engine_would_mount() -> None:
    branches = "br:/r/diff/2=rw:/r/diff/1=ro+wh:/r/diff/0=ro+wh"
    assert aufs(Recorder()).mounts(STACK) == [Mount("aufs", "none", (branches, *TAIL.split(",")))]
    view = "br:/r/diff/1=ro+wh:/r/diff/0=ro+wh"
    assert aufs(Recorder()).mounts(Stack(STACK.lowers)) == [
        Mount("aufs", "none", (view, *TAIL.split(","), "ro"))
    ]


def test_engines_are_not_told_what_they_cannot_do() -> None:
    for name in ("a:b", "a,b", "a=b"):
        with pytest.raises(InvalidArgument, match="misread"):
            aufs(Recorder()).mounts(Stack((Path("/r") / name,)))
    too_long = tuple(Path("/r") / stacks.sha256(number) for number in range(100))
    too_many = tuple(Path("/r") / str(number) for number in range(OPTIONS_MAX))
    for lowers in (too_long, too_many):
        with pytest.raises(NotSupported, match="do not fit the one call"):
            aufs(Recorder()).mounts(Stack(lowers))
    (told,) = aufs(Recorder()).mounts(Stack(too_many[:-4]))
    assert told.options[0].count(":") + len(told.options) - 1 == OPTIONS_MAX


# ---- where there is AUFS ----


@pytest.fixture
def union() -> Aufs:
    return Aufs()


@pytest.mark.lane("root", "aufs")
def test_a_mount_on_aufs_itself(ground: Path) -> None:
    union = Aufs()
    stack = stacks.make(ground, 60, name=stacks.sha256)
    with mounted(union, stack, ground / "target") as target:
        found = statfs(target)
        assert found.type == AUFS_MAGIC
        assert found.flags & UNFINISHED == 0
        (target / "own-3").unlink()
        with pytest.raises(NotSupported, match="AUFS cannot use"):
            union.check_backing(target)
    assert stack.upper is not None
    assert (stack.upper / ".wh.own-3").is_file()
    assert (stack.upper / ".wh..wh.aufs").is_file()
    assert not (union._xino_directory() / "aufs.xino").exists()


@pytest.mark.lane("root", "aufs")
def test_an_unfinished_mount_on_aufs_itself(ground: Path) -> None:
    union = Aufs()
    stack = stacks.make(ground, 2)
    half = f"br:{stack.upper}=rw,xino={union._xino_directory()}/aufs.xino"
    with union.kernel.alone():
        union.kernel.mount(ground / "target", flags=UNFINISHED, data=half)
    assert not union.is_mounted(ground / "target")
    with mounted(union, stack, ground / "target") as target:
        assert union.is_mounted(target)
        assert set(os.listdir(target)) == stacks.names(2)
    assert statfs(ground / "target").type != AUFS_MAGIC


@pytest.mark.lane("root", "aufs")
def test_more_branches_than_the_kernel_joins(ground: Path) -> None:
    union = Aufs()
    stack = stacks.make(ground, 127)  # with the upper one more than CONFIG_AUFS_BRANCH_MAX_127
    codes = []
    try:
        with mounted(union, stack, ground / "target") as target:
            assert set(os.listdir(target)) == stacks.names(127)
    except NotSupported as error:
        codes = [error.code]
    assert codes in ([], ["aufs.branches"])
    assert statfs(ground / "target").type != AUFS_MAGIC


@pytest.mark.lane("root", "aufs")
def test_dirperm1_is_found_on_aufs_itself() -> None:
    assert Aufs().status() == [("Dirperm1 Supported", "true")]
