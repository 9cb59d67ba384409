"""A thread with its own working directory."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerlimit.linux.thread import call_in_directory

pytestmark = pytest.mark.lane("root")


def test_only_the_call_sees_the_directory(tmp_path: Path) -> None:
    before = Path.cwd()
    (tmp_path / "marker").touch()
    seen: list[list[str]] = []
    call_in_directory(tmp_path, lambda: seen.append(os.listdir(".")))
    assert seen == [["marker"]]
    assert Path.cwd() == before


def test_calls_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    directories = [tmp_path / str(number) for number in range(8)]
    for directory in directories:
        directory.mkdir()

    def write(directory: Path) -> None:
        def relative() -> None:
            together.wait()
            Path("here").write_text(directory.name)

        call_in_directory(directory, relative)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, directories))
    assert [(directory / "here").read_text() for directory in directories] == [str(n) for n in range(8)]


def test_what_the_call_raises_is_raised(tmp_path: Path) -> None:
    others = set(threading.enumerate())

    def fail() -> None:
        raise KeyError("from inside")

    with pytest.raises(KeyError, match="from inside"):
        call_in_directory(tmp_path, fail)
    with pytest.raises(FileNotFoundError):
        call_in_directory(tmp_path / "none", lambda: None)
    assert set(threading.enumerate()) <= others
