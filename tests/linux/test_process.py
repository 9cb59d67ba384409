"""prctl, keyrings and filters, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest


def python(program: str) -> subprocess.CompletedProcess[str]:
    preamble = "import os, signal, sys; from layerlimit.linux import process; "
    return subprocess.run(
        [sys.executable, "-c", preamble + program], check=False, capture_output=True, text=True
    )


def test_a_process_dies_with_its_parent() -> None:
    program = """
read_end, write_end = os.pipe()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        process.die_with_parent(signal.SIGKILL)
        os.write(1, b"watching ")
        os.read(read_end, 1)
        os._exit(0)
    import time
    while True:
        time.sleep(60)
os.close(read_end)
import ctypes
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # the grandchild's end is told to this process
import time
time.sleep(0.2)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
_, result = os.wait()
print(os.WTERMSIG(result))
"""
    done = python(program)
    assert done.stdout == f"watching {int(signal.SIGKILL)}\n", done.stderr


def test_no_privileges_are_gained_and_a_filter_holds() -> None:
    program = """
process.forbid_new_privileges()
from layerlimit.linux.seccomp import default_filter
process.filter_syscalls(default_filter())
try:
    from layerlimit.linux.namespaces import CLONE_NEWUSER, unshare
    unshare(CLONE_NEWUSER)
except PermissionError as error:
    print(error.strerror)
print(open("/proc/self/status").read())
"""
    done = python(program)
    assert done.stdout.startswith("unshare: Operation not permitted\n"), done.stderr
    assert "NoNewPrivs:\t1\n" in done.stdout
    assert "Seccomp:\t2\n" in done.stdout


@pytest.mark.lane("root")
def test_a_hidden_process_belongs_to_root_in_proc() -> None:
    program = """
os.setgid(1234)
os.setuid(1234)
process.prctl(4, 1)
print(os.stat("/proc/self/environ").st_uid)
process.hide_memory()
print(os.stat("/proc/self/environ").st_uid)
"""
    assert python(program).stdout == "1234\n0\n"


def test_the_session_keyring_is_a_new_one() -> None:
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
def session(): return libc.syscall(number, 0, -3, 1)
first = session()
process.leave_session_keyring()
second = session()
assert first > 0 and second > 0 and first != second, (first, second)
"""
    done = python(program)
    assert done.returncode == 0, done.stderr


def test_the_title_is_what_ps_shows() -> None:
    program = """
process.set_title(b"a-name-of-its-own")
shown = open("/proc/self/cmdline", "rb").read()
print(shown.strip(b"\\0"), open("/proc/self/comm").read().strip())
process.set_title(b"x" * 100_000)
print(set(open("/proc/self/cmdline", "rb").read().rstrip(b"\\0")) == set(b"x"))
"""
    assert python(program).stdout == "b'a-name-of-its-own' a-name-of-its-o\nTrue\n"


def test_an_unknown_option_is_an_error() -> None:
    done = python("process.prctl(12345)")
    assert "prctl(12345): Invalid argument" in done.stderr
