"""overlay: its limits, its options, its errors, and what engines are told."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from layerlimit.errors import Error, InvalidArgument, NotSupported
from layerlimit.linux.mountinfo import MountEntry, read
from layerlimit.union import Mount, Overlay, Stack, overlay_context
from tests.union import stacks
from tests.union.stacks import mounted

OPTIONS = ("index=off", "metacopy=off", "redirect_dir=nofollow", "nfs_export=off", "xino=auto")

new = pytest.param("new", marks=pytest.mark.lane("root", "lowerdir_plus"))
mount2 = pytest.param("mount2", marks=[pytest.mark.lane("root", "mount2"), pytest.mark.guest])
both = pytest.mark.parametrize("api", [new, mount2])
Api = Literal["new", "mount2"]


@pytest.fixture
def union(request: pytest.FixtureRequest) -> Overlay:
    """For ``ground``: any overlay."""
    return Overlay()


def entry_of(target: Path) -> MountEntry:
    (found,) = (entry for entry in read() if entry.mount_point == target)
    return found


def is_volatile(target: Path) -> bool:
    shown = entry_of(target).super_options
    return "volatile" in shown or "fsync=volatile" in shown  # the second since 6.18


@both
def test_500_layers(ground: Path, api: Api) -> None:
    overlay = Overlay(api=api)
    stack = stacks.make(ground, 500, name=stacks.sha256)
    with mounted(overlay, stack, ground / "target") as target:
        assert set(os.listdir(target)) == stacks.names(500)
        assert (target / "own-499").read_text() == "499"
        (target / "same").write_text("changed")
    frozen = Stack(stack.lowers)
    with mounted(overlay, frozen, ground / "target") as target:
        assert (target / "same").read_text() == "0"


@both
def test_501_layers_are_refused_before_any_mount(ground: Path, api: Api) -> None:
    overlay = Overlay(api=api)
    stack = stacks.make(ground, 501, name=stacks.sha256)
    before = [entry.mount_id for entry in read()]
    with pytest.raises(InvalidArgument, match="501 layers; overlay joins at most 500") as caught:
        overlay.mount(stack, ground / "target")
    assert caught.value.code == "overlay.layers"
    with pytest.raises(InvalidArgument):
        overlay.mount(Stack(stack.lowers[:500], stack.upper), ground / "target", read_only=True)
    with pytest.raises(InvalidArgument):
        overlay.mounts(stack)
    assert [entry.mount_id for entry in read()] == before


@pytest.mark.lane("root", "lowerdir_plus")
def test_the_kernels_own_limit_is_the_same(ground: Path) -> None:
    stack = stacks.make(ground, 501)
    with pytest.raises(OSError, match="too many lower directories, limit is 500"):
        overlay_context.mount(stack, ground / "target", {}, read_only=False)


@both
def test_every_option_is_explicit(ground: Path, api: Api) -> None:
    stack = stacks.make(ground, 2)
    with mounted(Overlay(api=api), stack, ground / "target") as target:
        entry = entry_of(target)
        assert (entry.fstype, entry.source) == ("overlay", "overlay")
        assert "redirect_dir=nofollow" in entry.super_options
        assert not {"index=on", "metacopy=on", "nfs_export=on", "volatile", "userxattr"} & set(
            entry.super_options
        )
        assert f"upperdir={stack.upper}" in entry.super_options
        assert "ro" not in entry.options
    with mounted(Overlay(api=api), stack, ground / "target", read_only=True) as target:
        entry = entry_of(target)
        assert "ro" in entry.options
        assert not any(option.startswith("upperdir") for option in entry.super_options)


@both
def test_redirect_dir(ground: Path, api: Api) -> None:
    stack = stacks.make(ground, 1)
    (stack.lowers[0] / "directory").mkdir()
    with mounted(Overlay(api=api), stack, ground / "target") as target:
        with pytest.raises(OSError, match="cross-device") as caught:
            (target / "directory").rename(target / "moved")
        assert caught.value.errno == errno.EXDEV
    with mounted(Overlay(api=api, redirect_dir="on"), stack, ground / "target") as target:
        (target / "directory").rename(target / "moved")
    assert stack.upper is not None
    assert os.getxattr(stack.upper / "moved", "trusted.overlay.redirect") == b"directory"


@both
def test_userxattr(ground: Path, api: Api) -> None:
    stack = stacks.make(ground, 1)
    (stack.lowers[0] / "directory").mkdir()
    with mounted(Overlay(api=api, userxattr=True), stack, ground / "target") as target:
        (target / "directory").rmdir()
        (target / "directory").mkdir()
    assert stack.upper is not None
    assert os.getxattr(stack.upper / "directory", "user.overlay.opaque") == b"y"


@both
def test_volatile_is_refused_again_until_its_mark_is_removed(ground: Path, api: Api) -> None:
    overlay = Overlay(api=api, volatile=True)
    stack = stacks.make(ground, 2)
    with mounted(overlay, stack, ground / "target") as target:
        assert is_volatile(target)
    with pytest.raises(Error, match="cannot mount"):
        overlay.mount(stack, ground / "target")
    assert stack.work is not None
    shutil.rmtree(stack.work / "work" / "incompat" / "volatile")
    with mounted(overlay, stack, ground / "target"):
        pass
    with mounted(overlay, Stack(stack.lowers), ground / "target") as target:
        assert not is_volatile(target)


@pytest.mark.lane("root", "lowerdir_plus")
def test_the_error_carries_the_kernels_words(ground: Path) -> None:
    stack = stacks.make(ground, 1)
    file = stack.lowers[0] / "same"
    with pytest.raises(Error, match=r"overlay: \S+ is not a directory") as caught:
        Overlay(api="new").mount(Stack((file, stack.lowers[0])), ground / "target")
    assert f"mount a stack of 2 layers at {ground / 'target'}" in str(caught.value)
    assert not caught.value.hint


@both
def test_reasons_that_only_the_kernels_log_has(ground: Path, api: Api) -> None:
    stack = stacks.make(ground, 1)
    elsewhere = Stack(stack.lowers, stack.upper, Path("/proc"))
    with pytest.raises(InvalidArgument, match="Invalid argument") as caught:
        Overlay(api=api).mount(elsewhere, ground / "target")
    assert caught.value.hint == "the kernel's log (dmesg) has the reason"


@both
def test_an_overlay_is_no_ground_for_an_upper(ground: Path, api: Api) -> None:
    overlay = Overlay(api=api)
    stack = stacks.make(ground, 1)
    with mounted(overlay, stack, ground / "target") as target:
        with pytest.raises(NotSupported, match="lies on overlay, which overlay cannot use") as caught:
            overlay.check_backing(target / "not" / "there")
        assert caught.value.code == "union.backing"


@both
def test_a_third_level_is_refused_and_a_second_is_not(ground: Path, api: Api) -> None:
    overlay = Overlay(api=api)
    rooms = [ground / str(level) for level in range(3)]
    made = []
    for room in rooms:
        room.mkdir()
        made.append(stacks.make(room, 1))
    with mounted(overlay, made[0], rooms[0] / "target") as first:
        second = Stack((first,), made[1].upper, made[1].work)
        with mounted(overlay, second, rooms[1] / "target") as over:
            assert (over / "same").read_text() == "0"
            third = Stack((over,), made[2].upper, made[2].work)
            with pytest.raises(Error, match="cannot mount"):
                overlay.mount(third, rooms[2] / "target")
            assert not overlay.is_mounted(rooms[2] / "target")


def test_an_upper_needs_a_work_directory() -> None:
    with pytest.raises(InvalidArgument, match="needs a work directory"):
        Overlay().mount(Stack((Path("/a"),), Path("/u")), Path("/t"))


def test_what_an_engine_would_mount() -> None:
    lowers = (Path("/r/1"), Path("/r/0"))
    assert Overlay().mounts(Stack(lowers, Path("/r/u"), Path("/r/w"))) == [
        Mount("overlay", "overlay", ("workdir=/r/w", "upperdir=/r/u", "lowerdir=/r/1:/r/0", *OPTIONS))
    ]
    assert Overlay().mounts(Stack(lowers)) == [Mount("overlay", "overlay", ("lowerdir=/r/1:/r/0", *OPTIONS))]
    assert Overlay().mounts(Stack(lowers[:1])) == [Mount("bind", "/r/1", ("ro", "rbind"))]
    assert Overlay().mounts(Stack((), Path("/r/u"))) == [Mount("bind", "/r/u", ("rw", "rbind"))]


@pytest.mark.lane("root", "overlay")
def test_mount8_takes_what_an_engine_is_told(ground: Path) -> None:
    stack = stacks.make(ground, 3)
    for given in (stack, Stack(stack.lowers), Stack(stack.lowers[:1])):
        (told,) = Overlay().mounts(given)
        how = ["--bind"] if told.type == "bind" else ["-t", told.type]
        options = [option for option in told.options if option != "rbind"]
        command = ["mount", *how, "-o", ",".join(options), told.source, os.fspath(ground / "target")]
        subprocess.run(command, check=True)
        try:
            assert (ground / "target" / "same").read_text() == "0"
        finally:
            Overlay().unmount(ground / "target")


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", 'a"b'])
def test_paths_that_engines_misread_are_not_told_to_them(name: str) -> None:
    for stack in (
        Stack((Path("/r") / name,)),
        Stack((Path("/r/0"),), Path("/r") / name, Path("/r/w")),
        Stack((Path("/r/0"),), Path("/r/u"), Path("/r") / name),
    ):
        with pytest.raises(InvalidArgument, match="misread"):
            Overlay().mounts(stack)


@pytest.mark.guest
@pytest.mark.lane("root", "overlay")
def test_auto_mounts_and_says_how(ground: Path) -> None:
    stack = stacks.make(ground, 2)
    with mounted(Overlay(), stack, ground / "target") as target:
        assert set(os.listdir(target)) == stacks.names(2)
    assert Overlay(api="new").status() == [("Overlay Mount API", "lowerdir+")]
    assert Overlay(api="mount2").status() == [("Overlay Mount API", "mount(2)")]
    assert Overlay().status() in (Overlay(api="new").status(), Overlay(api="mount2").status())
