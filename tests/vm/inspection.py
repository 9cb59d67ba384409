"""Runs inside the guest after a power cut: says what is left of a store, without judging it.

``python -m tests.vm.inspection DEVICE FILE_SYSTEM REPORT ...``, three arguments for each disk; a report is
a JSON object, see :func:`inspect`. Judging is :mod:`tests.vm.verdict`'s.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layerlimit
from layerlimit.linux import files
from tests import scratch
from tests.vm.workload import MIB, content_of

ROOT = "store"  # below the disk's top


def inspect(root: Path) -> dict[str, Any]:
    """``entries`` by name as the workload's states, with what mounting them showed; the findings of three
    checks (as ``found``, with ``repair``, ``after`` it); ``left``: what has no row after gc, or is attached.
    """
    with layerlimit.Store(root) as store:
        report: dict[str, Any] = {"opened": store.opened, "gc": store.gc()}
        for name, repair in (("found", False), ("repair", True), ("after", False)):
            report[name] = [
                [finding.code, finding.message, finding.repaired] for finding in store.check(repair=repair)
            ]
        report["entries"] = {info.name: _entry(store, info) for info in store.ls()}
        report["left"] = list(_left(store)) + scratch.leftovers(root, patience=5.0)
    return report


def _entry(store: layerlimit.Store, info: layerlimit.Info) -> dict[str, Any]:
    limit = store.limit(info.name)
    found: dict[str, Any] = {
        "kind": str(info.kind),
        "parent": info.parent,
        "limit": limit.bytes if limit else None,
        "promised": info.promised,
        "labels": info.labels,
    }
    try:
        with store.mounted(info.name) as top:
            found["content"] = content_of(top)
            if limit and info.writable:
                space = os.statvfs(top)
                found["available"] = space.f_bavail * space.f_frsize
                found["fitted"] = fitting(top / "filling", most=limit.bytes + 16 * MIB)
    except Exception:
        found["failure"] = traceback.format_exc()
    return found


def fitting(path: Path, *, most: int) -> int | None:
    """How many bytes fit into a new file before ENOSPC; None when ``most`` do. Takes them back."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with contextlib.suppress(_NoSpace):
            for size in range(MIB, most, MIB):
                with _no_space():
                    files.allocate(fd, size, path)
            return None
        # Real writes behind what was allocated.
        os.lseek(fd, 0, os.SEEK_END)
        with contextlib.suppress(_NoSpace), _no_space():
            while True:
                os.write(fd, bytes(1 << 16))
        return os.fstat(fd).st_size
    finally:
        os.close(fd)
        path.unlink()


class _NoSpace(Exception):
    """ENOSPC and nothing else."""


@contextlib.contextmanager
def _no_space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _NoSpace from error


def _left(store: layerlimit.Store) -> Iterator[str]:
    """What is on disk and belongs to no entry."""
    entries = store.ls()
    ids = {info.id for info in entries}
    limited = {info.id for info in entries if store.limit(info.name) is not None}
    root = store.root
    for directory, expected in (
        ("layers", ids),
        ("meta", ids),
        ("containers_quota", {f"{id}.ext4" for id in limited}),
        ("diff", ids),
        ("work", ids),
        ("img", limited),
        ("trash", set()),
        ("lost", set()),
    ):
        with contextlib.suppress(FileNotFoundError):
            for name in set(os.listdir(root / directory)) - expected:
                yield f"{directory}/{name}"


def main(arguments: list[str]) -> None:
    for device, kind, report in zip(*[iter(arguments)] * 3, strict=True):
        top = Path(tempfile.mkdtemp(prefix="disk-", dir="/mnt"))
        try:
            # Several cuts of one disk are mounted at a time, which XFS allows only so.
            options = ["-o", "nouuid"] if kind == "xfs" else []
            subprocess.run(["mount", "-t", kind, *options, device, top], check=True)
            found = inspect(top / ROOT)
            subprocess.run(["umount", top], check=True)
        except Exception:
            found = {"failure": traceback.format_exc()}
        Path(report).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
