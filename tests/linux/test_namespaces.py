"""Namespaces and a change of the root, in processes of their own."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.linux.mountinfo import read
from layerlimit.linux.namespaces import set_hostname, unshare

pytestmark = pytest.mark.lane("root")


def python(program: str, *arguments: str) -> str:
    preamble = (
        "import os, sys; from layerlimit.linux.namespaces import *; from layerlimit.linux.mount import *; "
        "from layerlimit.linux import namespaces as n; "
    )
    command = [sys.executable, "-c", preamble + program, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_a_host_name_of_ones_own() -> None:
    program = "unshare(n.CLONE_NEWUTS); set_hostname('own'); print(os.uname().nodename)"
    assert python(program) == "own\n"
    assert platform.node() != "own"


def test_a_host_name_that_is_too_long_is_an_error() -> None:
    with pytest.raises(OSError, match="sethostname") as caught:
        set_hostname("x" * 65)
    assert caught.value.errno == errno.EINVAL


def test_an_impossible_namespace_is_an_error() -> None:
    with pytest.raises(OSError, match="unshare") as caught:
        unshare(1)
    assert caught.value.errno == errno.EINVAL


def test_another_root_takes_the_place_of_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    program = """
unshare(n.CLONE_NEWNS)
set_propagation("/", MS_PRIVATE, recursive=True)
with clone_tree(sys.argv[1]) as tree:
    set_attributes(tree.fd, propagation=MS_PRIVATE)
    target = os.open("/", os.O_PATH)
    move_mount(tree.fd, target)
    os.close(target)
    enter_root(tree.fd)
print(os.listdir("/"), os.getcwd(), os.listdir(".."))
"""
    assert python(program, str(tmp_path)) == "['here'] / ['here']\n"
    assert [mount for mount in read() if mount.mount_point.is_relative_to(tmp_path)] == []


def test_a_mount_is_moved_onto_what_is_open_whatever_its_name_is_by_then(tmp_path: Path) -> None:
    for name in ("target", "source"):
        (tmp_path / name).mkdir()
    (tmp_path / "source/file").touch()
    program = """
unshare(n.CLONE_NEWNS)
set_propagation("/", MS_PRIVATE, recursive=True)
os.chdir(sys.argv[1])
target = os.open("target", os.O_PATH)
os.rename("target", "renamed")
os.symlink("/etc", "target")
with clone_tree("source") as tree:
    move_mount(tree.fd, target)
print(os.listdir("renamed"))
"""
    assert python(program, str(tmp_path)) == "['file']\n"
    assert os.listdir(tmp_path / "renamed") == []


def test_a_target_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = """
unshare(n.CLONE_NEWNS)
set_propagation("/", MS_PRIVATE, recursive=True)
with clone_tree("/etc") as tree:
    try:
        move_mount(tree.fd, os.open(sys.argv[1], os.O_PATH))
    except OSError as error:
        print(error.strerror)
"""
    assert python(program, str(tmp_path / "file")) == "move_mount: Invalid argument\n"
