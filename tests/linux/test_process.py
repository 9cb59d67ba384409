"""What a process decides for itself, seen from a process of its own."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux import process

pytestmark = pytest.mark.lane("root")


def inside(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import os\nfrom layerlimit.linux.process import *\n" + script]
    return subprocess.run(command, check=False, text=True, capture_output=True)


def test_an_unknown_option_names_the_call() -> None:
    with pytest.raises(OSError, match=r"prctl\(9999\): Invalid argument"):
        process.prctl(9999)


def test_no_new_privileges_is_set_for_good() -> None:
    done = inside("forbid_new_privileges()\nprint(open('/proc/self/status').read())")
    assert "NoNewPrivs:\t1" in done.stdout


def test_a_child_ends_with_the_thread_that_made_it() -> None:
    script = """
import signal, time
ready, started = os.pipe()
if not os.fork():
    if not os.fork():
        die_with_parent(signal.SIGKILL)
        os.write(started, b"%d" % os.getpid())
        time.sleep(60)
    print(os.read(ready, 20).decode(), flush=True)
    os.kill(os.getpid(), 9)
os.wait()
"""
    done = inside(script)  # returns once every process that holds its standard output has ended
    assert done.returncode == 0
    child = Path("/proc", done.stdout.strip(), "stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"  # nobody may have asked for its end


def test_memory_is_hidden_from_the_same_user() -> None:
    # /proc gives the files of a process that cannot be dumped to root, whoever the process is.
    script = """
os.setresuid(65534, 65534, 65534)
prctl(4, 1)  # PR_SET_DUMPABLE, which changing the user has cleared
print(os.stat("/proc/self/maps").st_uid)
hide_memory()
print(os.stat("/proc/self/maps").st_uid)
"""
    assert inside(script).stdout == "65534\n0\n"


def test_the_session_keyring_is_left() -> None:
    done = inside(
        "def ring(): return {line.split()[0] for line in open('/proc/keys') if '_ses' in line}\n"
        "leave_session_keyring()\none = ring()\nleave_session_keyring()\nprint(one != ring(), len(ring()))"
    )
    assert done.stdout.startswith("True "), done.stderr


ALLOW, DENY, LOAD = (
    struct.pack("=HBBI", code, 0, 0, value)
    for code, value in ((0x06, 0x7FFF0000), (0x06, 0x00050000 | 13), (0x20, 0))
)
NR_GETPPID = {"x86_64": 110, "aarch64": 173}


@pytest.mark.skipif(os.uname().machine not in NR_GETPPID, reason="the number of getppid is not known")
def test_a_filter_judges_calls() -> None:
    number = NR_GETPPID[os.uname().machine]
    program = LOAD + struct.pack("=HBBI", 0x15, 0, 1, number) + DENY + ALLOW
    script = f"""
from layerlimit.linux.libc import syscall
forbid_new_privileges()
print(syscall({number}) > 0)
filter_syscalls({program!r})
import ctypes
print(syscall({number}), ctypes.get_errno())
"""
    assert inside(script).stdout == "True\n-1 13\n"


def test_a_filter_that_is_none_is_refused() -> None:
    done = inside("forbid_new_privileges()\nfilter_syscalls(b'x' * 8)")
    assert "OSError: [Errno 22] prctl(22): Invalid argument" in done.stderr
