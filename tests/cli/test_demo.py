"""The demo shows what it promises, and leaves nothing, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import scratch

COMMAND = [sys.executable, "-m", "layerlimit.demo"]


@contextmanager
def demo(rootfs: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        COMMAND,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "ROOTFS": str(rootfs)},
        start_new_session=True,
    ) as process:
        yield process


def directory_in(text: str) -> Path:
    found = re.search(r"LAYERLIMIT_ROOT=(/var/tmp/layerlimit-demo\.\w+)/root", text)
    assert found, text
    return Path(found[1])


def assert_gone(directory: Path) -> None:
    assert scratch.leftovers(directory, patience=2.0) == []
    assert not directory.exists()


def test_two_at_once(busybox: Path) -> None:
    with demo(busybox) as one, demo(busybox) as other:
        texts = [process.communicate()[0] for process in (one, other)]
        assert (one.returncode, other.returncode) == (0, 0), texts
    directories = [directory_in(text) for text in texts]
    assert directories[0] != directories[1]
    for text, directory in zip(texts, directories, strict=True):
        assert "No space left on device" in text
        assert "$ layerlimit resize web 512MiB" in text
        assert re.search(r"^overlay +\S+ +\S+ +\S+ +100% /$", text, re.MULTILINE)
        assert "D /etc/issue" in text
        assert "etc/.wh.issue" in text
        assert_gone(directory)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(busybox: Path, number: signal.Signals, code: int) -> None:
    with demo(busybox) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("$ layerlimit run web -- dd"):
                break
        os.killpg(process.pid, number)
        process.communicate()
        assert process.returncode == code
    assert_gone(directory_in(text))


def test_what_a_killed_one_left_is_swept_by_the_next(busybox: Path) -> None:
    with demo(busybox) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("$ layerlimit run web -- dd"):
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    directory = directory_in(text)
    assert directory.exists()
    with demo(busybox) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("$ layerlimit import"):
                break
        assert_gone(directory)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


def test_a_root_filesystem_that_is_not_there(tmp_path: Path) -> None:
    with demo(tmp_path / "nothing.tar") as process:
        text = process.communicate()[0]
        assert process.returncode == 1
    assert text == f"demo: ROOTFS={tmp_path}/nothing.tar is not a file\n"
