"""The table of unions, and proving that one works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from layerlimit.errors import InvalidArgument, NotSupported
from layerlimit.linux.mountinfo import below, read
from layerlimit.union import MECHANISMS, Aufs, Overlay, Stack, Union, make, mechanisms, probe
from tests.union import stacks
from tests.union.stacks import mounted


def test_every_mechanism_is_made_by_its_name() -> None:
    assert list(MECHANISMS) == ["overlay", "aufs"]
    for name in MECHANISMS:
        assert make(name).name == name
    assert isinstance(make("overlay"), Overlay)
    assert isinstance(make("aufs"), Aufs)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match=r"no union is called 'zfs' \(choose one of overlay, aufs\)"):
        make("zfs")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("overlay", marks=pytest.mark.lane("root", "overlay")),
        pytest.param("aufs", marks=pytest.mark.lane("root", "aufs")),
    ],
)
def test_what_works_is_proven_and_nothing_is_left(name: str, ground: Path) -> None:
    probe(name, ground)
    assert list(ground.iterdir()) == []


@pytest.fixture
def union() -> Union:
    """For ``ground``: what AUFS can stand on, overlay can too."""
    return Aufs()


def test_a_kernel_without_it_is_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "aufs" in Path("/proc/filesystems").read_text(encoding="ascii").split():
        monkeypatch.setattr("layerlimit.union.aufs_kernel.linux_mount.mount", refuse)
    with pytest.raises(NotSupported, match="AUFS"):
        probe("aufs", tmp_path)
    assert list(tmp_path.iterdir()) == []


def refuse(*_: object, **__: object) -> None:
    raise OSError(19, "mount: No such device")


@pytest.mark.lane("root", "overlay")
def test_a_place_that_cannot_hold_it_is_not_supported(ground: Path) -> None:
    (ground / "room").mkdir()
    stack = stacks.make(ground / "room", 1)
    with mounted(Overlay(), stack, ground / "room" / "target") as target:
        with pytest.raises(NotSupported, match="lies on overlay"):
            probe("overlay", target)
        assert set(os.listdir(target)) == stacks.names(1)
    with pytest.raises(NotSupported, match=r"overlay does not work in .*none: .*No such file"):
        probe("overlay", ground / "none")


class Lying(Overlay):
    """A union that mounts something else than it was asked to."""

    def __init__(self, change: Callable[[Stack], Stack]) -> None:
        super().__init__()
        object.__setattr__(self, "change", change)

    def mount(self, stack: Stack, target: Path, *, read_only: bool = False) -> None:
        change: Callable[[Stack], Stack] = self.change  # type: ignore[attr-defined]
        Overlay().mount(change(stack), target, read_only=read_only)


@pytest.mark.lane("root", "overlay")
@pytest.mark.parametrize(
    "change",
    [
        lambda stack: Stack((), stack.upper),
        lambda stack: stack.frozen,
        lambda stack: Stack((), stack.lowers[0]),
    ],
    ids=["without-lower", "without-upper", "lower-as-upper"],
)
def test_a_union_that_shows_something_else_does_not_pass(
    ground: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Stack], Stack]
) -> None:
    monkeypatch.setitem(mechanisms.MECHANISMS, "lying", lambda: Lying(change))
    with pytest.raises(NotSupported, match="lying does not work in"):
        probe("lying", ground)
    assert [entry.mount_point for entry in below(ground, read())] in ([], [ground])
    assert list(ground.iterdir()) == []
