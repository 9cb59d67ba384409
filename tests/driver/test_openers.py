"""When an opening sweeps: after a boot, a death or an error, and not otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit import Driver
from layerlimit.driver.locks import Locks
from layerlimit.driver.openers import Openers
from layerlimit.errors import Error
from layerlimit.linux.files import lock_ranges
from tests.driver.ground import picture

pytestmark = pytest.mark.lane("root", "overlay")


def test_the_first_opening_sweeps_and_the_next_do_not(tmp_path: Path) -> None:
    first = Driver(tmp_path)
    assert first.swept
    assert not Driver(tmp_path).swept
    first.close()
    first.close()
    assert not Driver(tmp_path).swept


def test_after_a_boot_and_in_a_copy(tmp_path: Path) -> None:
    Driver(tmp_path / "a").create("1")
    page = (tmp_path / "a/open").read_bytes()
    with (tmp_path / "a/open").open("r+b") as file:
        file.write(b"0" * 36)
    assert Driver(tmp_path / "a").swept
    assert not Driver(tmp_path / "a").swept
    (tmp_path / "a/open").rename(tmp_path / "old")
    (tmp_path / "a/open").write_bytes(page)
    assert Driver(tmp_path / "a").swept


def test_after_a_death(tmp_path: Path) -> None:
    Driver(tmp_path)
    script = "import sys; from layerlimit import Driver; d = Driver(sys.argv[1]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert not Driver(tmp_path).swept
        other.send_signal(signal.SIGKILL)
    assert Driver(tmp_path).swept
    assert not Driver(tmp_path).swept


def test_after_an_error_also_while_its_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path)
    driver.create("1")
    before = picture(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(5, "rename", "holds")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(Error):
            driver.get("1")
    assert picture(tmp_path) != before
    assert Driver(tmp_path).swept
    assert picture(tmp_path) == before
    assert not Driver(tmp_path).swept
    with pytest.raises(Error):
        driver.get("none")
    assert not Driver(tmp_path).swept


def test_what_a_sweep_had_to_skip_is_swept_later(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    (tmp_path / "meta/half").write_text("{}")
    (tmp_path / "open").unlink()
    with Locks(tmp_path / "lock").hold("half"):
        assert Driver(tmp_path).swept
        assert (tmp_path / "meta/half").exists()
    assert Driver(tmp_path).swept
    assert not (tmp_path / "meta/half").exists()
    driver.close()


def test_more_openers_than_there_are_bytes(tmp_path: Path) -> None:
    """Then nothing can be known of the next one's death, and the one after it sweeps."""
    path, locks = tmp_path / "open", Locks(tmp_path / "lock")
    Openers(path, locks).swept()
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, b"\1" * (4096 - 128), 128)
        lock_ranges(fd, list(range(128, 4096)), exclusive=True)
        assert not Openers(path, locks).due
        assert Openers(path, locks).due
    finally:
        os.close(fd)
