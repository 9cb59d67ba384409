"""Builds the native core (``src/layerlimit/archive/_native.c``) into the wheel where there is a C compiler.

With it the wheel is one for CPython 3.11 and later on this platform (``cp311-abi3``); without a compiler or
Python's header files it is ``py3-none-any`` and does everything in Python, more slowly. ``CC`` names another
compiler.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = "src/layerlimit/archive/_native.c"
_MODULE = "layerlimit/archive/_native.abi3.so"
#: The tests compile with these as well.
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")


def compile_native(source: Path, target: Path, *flags: str) -> str:
    """Compile ``source`` into the extension module ``target``; why it failed, or "" when it did not."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this Python has no stable ABI"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    include = f"-I{sysconfig.get_path('include')}"
    made = target.with_name(f".{target.name}.{os.getpid()}")  # renamed into place: others may have it loaded
    try:
        command = [*compiler, *FLAGS, *flags, "-shared", include, str(source), "-o", str(made)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            return next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        made.replace(target)
    except OSError as error:
        return f"{compiler[0]}: {error.strerror}"
    finally:
        made.unlink(missing_ok=True)
    return ""


class NativeCore(BuildHookInterface[Any]):
    """The hook that hatchling calls around the building of a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile: into the checkout for an editable install, else aside and from there into the wheel."""
        source = Path(self.root, _SOURCE)
        if version == "editable":
            target = source.with_name(Path(_MODULE).name)
        else:
            self._aside = tempfile.TemporaryDirectory()
            target = Path(self._aside.name, Path(_MODULE).name)
        failure = compile_native(source, target)
        if failure:
            if version == "editable":
                target.unlink(missing_ok=True)
            self.app.display_warning(f"without the native core, layers are applied more slowly: {failure}")
            return
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"
        if version != "editable":
            build_data["force_include"][str(target)] = _MODULE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled aside."""
        if version != "editable":
            self._aside.cleanup()


if __name__ == "__main__":
    sys.exit(compile_native(Path(_SOURCE), Path(sys.argv[1]), *sys.argv[2:]))
