"""Killed at any system call that changes something, an extraction leaves nothing that passes for a layer.

What keeps it from passing is what every caller does: extract where nobody looks, rename when it is whole.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from layerlimit.archive import Form, apply
from tests.archive import trees
from tests.archive.archives import archive, device, entry, file, folder, hardlink, symlink

pytestmark = pytest.mark.lane("root", "strace")

# Calls that change a file system and that the script below makes once Python has started; a C library or an
# architecture has one or the other of those that share a line.
KINDS = {
    "mkdir": "mkdir mkdirat",
    "mknod": "mknodat mknod",
    "symlink": "symlinkat",
    "link": "linkat",
    "unlink": "unlinkat",
    "write": "write pwrite64",
    "truncate": "ftruncate",
    "chown": "fchown fchownat",
    "chmod": "fchmod fchmodat chmod",
    "xattr": "fsetxattr setxattr lsetxattr",
    "times": "utimensat",
    "sync": "syncfs",
    "rename": "rename renameat renameat2",
}
CALLS = "|".join(" ".join(KINDS.values()).split())
# An entry for each of them, and files to fill up to 200.
ENTRIES = [
    *(
        each
        for n in range(36)
        for each in (folder(b"d%d" % n), *(file(b"d%d/%d" % (n, m), b"x") for m in range(4)))
    ),
    symlink(b"l", b"d1", uid=4),
    hardlink(b"h", b"d1/1", mode=0o600, mtime=5),
    device(b"null", 1, 3, mode=0o4666),
    entry(b"fifo", kind=b"6", uid=4),
    file(b"suid", b"x", mode=0o4755, uid=3),
    entry(b"attr", b"x", extended={b"SCHILY.xattr.user.a": b"b"}),
    entry(b"linkattr", kind=b"2", link=b"x", extended={b"SCHILY.xattr.trusted.a": b"b"}),
    entry(b"sparse", b"abc", extended={b"GNU.sparse.map": b"5000,3", b"GNU.sparse.size": b"9000"}),
    file(b".wh..wh.plnk/1", b"stored"),
    hardlink(b"copy", b".wh..wh.plnk/1"),
    folder(b"d1", mode=0o2700, uid=5),
    file(b"d2", b"now a file"),
    file(b".wh.d3"),
    file(b"d4/.wh..wh..opq"),
    file(b".wh.gone"),
    symlink(b"d5", b"d6"),
    *(folder(b"d%d/deep" % n) for n in range(10, 14)),
]
LAYER = archive(*ENTRIES)


class Store:
    """A directory with a layer to extract, as a caller would keep it."""

    def __init__(self, base: Path) -> None:
        self.staging, self.layer = base / "staging", base / "layer"
        base.mkdir()
        (base / "layer.tar").write_bytes(LAYER)
        self.script = textwrap.dedent(
            f"""
            import os
            from pathlib import Path
            from layerlimit.archive import Form, apply
            os.mkdir({str(self.staging)!r})
            with open({str(base / "layer.tar")!r}, "rb") as stream:
                apply(stream, Path({str(self.staging)!r}), form=Form.OVERLAY)
            os.rename({str(self.staging)!r}, {str(self.layer)!r})
            """
        )

    def run(self, *strace: str) -> subprocess.CompletedProcess[str]:
        command = ["strace", "-f", "-qq", *strace, sys.executable, "-B", "-c", self.script]
        return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[bytes, trees.Seen], Counter[str]]:
    """The whole layer, and how often which call is made for it."""
    store = Store(tmp_path_factory.mktemp("whole") / "store")
    done = store.run("-e", f"trace=/^({CALLS})$")
    assert done.returncode == 0, done.stderr
    return _steady(trees.scan(store.layer)), Counter(re.findall(rf"\b({CALLS})\(", done.stderr))


def _steady(seen: dict[bytes, trees.Seen]) -> dict[bytes, trees.Seen]:
    """What is the same each time: all but the times of whiteouts."""
    return {path: replace(each, mtime=0) if each.kind == "c" else each for path, each in seen.items()}


def test_the_layer_is_one_to_kill() -> None:
    assert len(ENTRIES) == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "every"])
def test_killed(
    *, kind: str, every: bool, made: tuple[dict[bytes, trees.Seen], Counter[str]], tmp_path: Path
) -> None:
    whole, calls = made
    assert any(calls[call] for call in KINDS[kind].split())
    for call in KINDS[kind].split():
        count = calls[call]
        for number in range(1, count + 1) if every else sorted({1, (count + 1) // 2, count}):
            if count:
                _kill(Store(tmp_path / f"{call}-{number}"), call, number, whole)


def _kill(store: Store, call: str, number: int, whole: dict[bytes, trees.Seen]) -> None:
    done = store.run("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
    assert done.returncode != 0
    # The kill comes when the call returns: after the very last rename the layer is there, and whole.
    if store.layer.exists():
        assert call.startswith("rename")
        assert _steady(trees.scan(store.layer)) == whole
        return
    shutil.rmtree(store.staging, ignore_errors=True)
    store.staging.mkdir(mode=0o755)
    with (store.staging.parent / "layer.tar").open("rb") as stream:
        apply(stream, store.staging, form=Form.OVERLAY, durable=False)
    assert _steady(trees.scan(store.staging)) == whole
