"""Locks between threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layerlimit.driver.locks import Locks

_HOLDER = """
import sys
from pathlib import Path
from layerlimit.driver.locks import Locks
with Locks(Path(sys.argv[1])).hold(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    (tmp_path / "lock").touch()
    return Locks(tmp_path / "lock")


def is_free(locks: Locks, id: str) -> bool:
    with locks.attempt(id) as held:
        return held is not None


def test_one_layer_at_a_time(locks: Locks) -> None:
    with locks.hold("a"):
        assert not is_free(locks, "a")
        assert is_free(locks, "b")
    assert is_free(locks, "a")


def test_more_layers_are_added(locks: Locks) -> None:
    with locks.hold("a") as held:
        held.add(["b", "c"])
        assert not any(is_free(locks, id) for id in "abc")
        held.add(["b"])
    assert all(is_free(locks, id) for id in "abc")


def test_shared_locks(locks: Locks) -> None:
    with locks.hold("a") as one, locks.hold("b") as two:
        one.add(["parent"], exclusive=False)
        two.add(["parent"], exclusive=False)
        assert not is_free(locks, "parent")


def test_the_whole_root(locks: Locks) -> None:
    with locks.everything():
        assert not is_free(locks, "a")
    with locks.hold("a"), locks.hold("b"):
        taken = threading.Event()

        def take() -> None:
            with locks.everything():
                taken.set()

        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.1)
    assert taken.wait(30)
    thread.join()


def test_threads_wait_for_each_other(locks: Locks) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(100):
            with locks.hold("a"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_processes_wait_and_death_frees(locks: Locks, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "lock"), "a"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert not is_free(locks, "a")
        assert is_free(locks, "b")
        other.kill()
        other.wait()
    assert is_free(locks, "a")


def test_an_error_frees(locks: Locks) -> None:
    with pytest.raises(ZeroDivisionError), locks.hold("a"):
        _ = 1 / 0
    assert is_free(locks, "a")


def test_no_descriptor_stays(locks: Locks) -> None:
    before = os.listdir("/proc/self/fd")
    with locks.hold("a", "b"), locks.attempt("a"), locks.attempt("c"):
        pass
    with locks.everything():
        pass
    assert os.listdir("/proc/self/fd") == before


def test_a_name_is_locked_and_not_a_file(locks: Locks, tmp_path: Path) -> None:
    with locks.hold("a" * 128), locks.hold("../x"):
        assert os.listdir(tmp_path) == ["lock"]
