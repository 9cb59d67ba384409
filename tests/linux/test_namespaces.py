"""Namespaces and roots, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux.mountinfo import read

pytestmark = pytest.mark.lane("root")


def inside(script: str, *arguments: object) -> list[str]:
    """The lines that a process of its own prints."""
    command = [sys.executable, "-c", "import os, sys\nfrom layerlimit.linux.namespaces import *\n" + script]
    command += map(str, arguments)
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_host_name_of_ones_own() -> None:
    name = "x" * 64
    script = """
unshare(CLONE_NEWUTS)
set_hostname(sys.argv[1])
print(os.uname().nodename)
try:
    set_hostname(sys.argv[1] + "y")
except OSError as error:
    print(error)
"""
    shown, error = inside(script, name)
    assert shown == name
    assert error.startswith("[Errno 22] sethostname: Invalid argument")
    assert os.uname().nodename != name


def test_unknown_flags_are_an_error() -> None:
    (error,) = inside("try:\n    unshare(1)\nexcept OSError as error:\n    print(error)")
    assert error == "[Errno 22] unshare: Invalid argument"


def test_the_old_root_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mark").write_text("inside")
    script = """
from layerlimit.linux.mount import MS_PRIVATE, clone_tree, set_propagation
unshare(CLONE_NEWNS)
set_propagation("/", MS_PRIVATE, recursive=True)
with clone_tree(sys.argv[1]) as tree:
    place = os.open(sys.argv[1], os.O_PATH)
    move_mount(tree.fd, place)
    os.close(place)
    enter_root(tree.fd)
print(os.getcwd(), sorted(os.listdir("/")), open("/etc/mark").read())
print(sorted(os.listdir("/../..")))
"""
    assert inside(script, tmp_path) == ["/ ['etc'] inside", "['etc']"]
    assert tmp_path not in {entry.mount_point for entry in read()}


def test_moving_needs_a_mount(tmp_path: Path) -> None:
    script = """
fd = os.open(sys.argv[1], os.O_PATH)
try:
    move_mount(fd, fd)
except OSError as error:
    print(error)
"""
    assert inside(script, tmp_path) == ["[Errno 22] move_mount: Invalid argument"]
