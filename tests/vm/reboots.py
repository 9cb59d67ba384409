"""Runs inside the guest: one boot of a store whose layers stay mounted when the machine stops.

``python -m tests.vm.reboots ROOT OTHER`` makes the layers if they are not there, and then prints as JSON what
this boot finds and what it makes of it, and what `check` finds there and in another store. It ends with
layers mounted, for the next boot to find their holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import layerlimit
from layerlimit.linux import mountinfo
from tests.vm.inspection import fitting
from tests.vm.workload import MIB

LIMITS = {"held": 8 * MIB, "engines": 16 * MIB, "grown": 12 * MIB}
GROWN = 24 * MIB


def make(store: layerlimit.Store) -> None:
    """Writable layers over a limited parent, which itself stands on one without a limit."""
    store.create("first")
    store.commit("first", "base")
    store.create("second", "base", limit=layerlimit.Limit(8 * MIB))
    with store.mounted("second") as top:
        (top / "from parent").write_text("kept")
    store.commit("second", "parent")
    for name, limit in LIMITS.items():
        store.create(name, "parent", limit=layerlimit.Limit(limit))
        with store.mounted(name) as top:
            (top / "own").write_text(name)


def boot(root: Path) -> dict[str, Any]:
    with layerlimit.Store(root) as store:
        if not store.ls():
            make(store)
        states = {name: store.state(name) for name in LIMITS}
        report: dict[str, Any] = {
            "mounted": [entry.mount_point for entry in mountinfo.below(store.root, mountinfo.read())],
            "holds": {name: state.holds for name, state in states.items()},
        }
        held = store.mount("held")
        grown = store.mount("grown")
        store.resize("grown", layerlimit.Limit(GROWN))
        engines = Path(tempfile.mkdtemp(dir="/mnt"))
        for each in store.mounts("engines"):
            options = ",".join(each.options)
            subprocess.run(["mount", "-t", each.type, "-o", options, each.source, engines], check=True)
        report["layers"] = {
            name: _layer(store, name, path)
            for name, path in (("held", held), ("grown", grown), ("engines", engines))
        }
        # One hold of this boot is all there is: giving it up unmounts.
        store.umount("held")
        report["mounted after umount"] = store.state("held").mounted
        store.mount("held")
        report["check"] = [finding.message for finding in store.check()]
    return report


def _layer(store: layerlimit.Store, name: str, path: Path) -> dict[str, Any]:
    limit = store.limit(name)
    return {
        "limit": limit.bytes if limit else None,
        "fitted": fitting(path / "filling", most=64 * MIB),
        "own": (path / "own").read_text(),
        "parent": (path / "from parent").read_text(),
        "holds": store.state(name).holds,
    }


if __name__ == "__main__":
    report = boot(Path(sys.argv[1]))
    with layerlimit.Store(Path(sys.argv[2])) as other:
        report["check"] += [finding.message for finding in other.check()]
    print(json.dumps(report))
