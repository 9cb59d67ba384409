"""Unmounting with patience."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from layerlimit.errors import Busy, Error
from layerlimit.linux.libc import os_error
from layerlimit.linux.patience import PAUSE, TRIES
from layerlimit.union.unmounting import unmount_patiently

TARGET = Path("/r/mnt/x")


class Mounts:
    """A mount whose unmounting fails with each of ``errors`` first."""

    def __init__(self, *errors: int, mounted: bool = True) -> None:
        self.errors = list(errors)
        self.mounted = mounted
        self.slept: list[float] = []

    def unmount(self, target: Path) -> None:
        assert target == TARGET
        if self.errors:
            raise os_error(self.errors.pop(0), "umount2", target)
        self.mounted = False

    def run(self) -> None:
        unmount_patiently(TARGET, self.unmount, lambda _: self.mounted, sleep=self.slept.append)


@pytest.mark.parametrize("busy", range(TRIES))
def test_busy_is_tried_again(busy: int) -> None:
    mounts = Mounts(*[errno.EBUSY] * busy)
    mounts.run()
    assert not mounts.mounted
    assert mounts.slept == [PAUSE] * busy


def test_busy_to_the_end_is_an_error_and_changes_nothing() -> None:
    mounts = Mounts(*[errno.EBUSY] * TRIES)
    with pytest.raises(Busy, match=r"/r/mnt/x is in use .*fuser"):
        mounts.run()
    assert mounts.mounted
    assert mounts.slept == [PAUSE] * (TRIES - 1)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOENT])
def test_nothing_mounted_is_success(code: int) -> None:
    Mounts(code, mounted=False).run()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPERM, errno.EIO])
def test_what_stays_mounted_is_an_error(code: int) -> None:
    mounts = Mounts(code)
    with pytest.raises(Error, match="cannot unmount /r/mnt/x") as caught:
        mounts.run()
    assert isinstance(caught.value.__cause__, OSError)
    assert mounts.slept == []
