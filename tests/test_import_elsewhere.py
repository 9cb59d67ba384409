"""The package can be imported where it cannot work, and says so when it is used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# What differs on other systems and would break an import: no fcntl, no Linux calls in the C library.
ELSEWHERE = """
import ctypes, os, pathlib, subprocess, sys, tempfile
sys.platform = {platform!r}
class Library:
    def __init__(self, *arguments, **options): pass
ctypes.CDLL = Library
sys.modules["fcntl"] = None
import layerlimit
from layerlimit import aufslimit
"""
USES = """
def refuses(call):
    try:
        call()
    except layerlimit.NotSupported as error:
        assert "Linux" in str(error) and error.exit_code == 7, error
    else:
        raise AssertionError(call)

assert aufslimit.MS_REMOUNT == 32
for call in (
    lambda: aufslimit.init("root"),
    lambda: aufslimit.init("root", union="overlay"),
    lambda: aufslimit.unmount("root"),
    lambda: aufslimit.Driver("root"),
    lambda: layerlimit.Driver("root"),
    lambda: layerlimit.Store("root"),
    lambda: layerlimit.adopt("root"),
):
    refuses(call)
assert not os.path.exists("root")
missing = [name for name in layerlimit.__all__ if not hasattr(layerlimit, name)]
assert not missing, missing
assert not [name for name in sys.modules if name.startswith("layerlimit.linux")]
"""


def run(code: str, cwd: os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_elsewhere(platform: str, tmp_path: os.PathLike[str]) -> None:
    done = run(ELSEWHERE.format(platform=platform) + USES, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_there_is_needed_here(tmp_path: os.PathLike[str]) -> None:
    """That the test above breaks what Linux code imports: the same without the name of another system."""
    done = run(ELSEWHERE.format(platform="linux"), tmp_path)
    assert done.returncode != 0
    assert "ImportError" in done.stderr or "AttributeError" in done.stderr or "ModuleNotFound" in done.stderr


def test_importing_needs_no_pytest(tmp_path: os.PathLike[str]) -> None:
    code = "import sys; sys.modules['pytest'] = None; import layerlimit, layerlimit.aufslimit"
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
