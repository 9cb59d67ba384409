"""SIGKILL at every durable step of what the model of test_stateful does not do: an import, and a rebuild."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerlimit.limit import Limit
from layerlimit.store import Store, check_root
from tests.archive.images import layer_tar

LOWER = layer_tar({"etc/": b"", "etc/a": b"a" * 5000})
UPPER = layer_tar({"b": b"b", "etc/": b"", "etc/.wh.a": b""})
SCRIPT = """
import io, sys
from pathlib import Path
from layerlimit.limit import Limit
from layerlimit.store import Store, check_root
from tests.store.test_killed import LOWER, UPPER
from tests.store.worker import Steps

what, root, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
steps = Steps()
if what == "import":
    with Store(root) as store:
        steps.left = step
        store.import_tar("base", io.BytesIO(LOWER), io.BytesIO(UPPER), limit=Limit(4 << 20))
        steps.left = -1
else:
    steps.left = step
    list(check_root(root, repair=True, quick=True))
"""


def killed_at(step: int, what: str, root: Path) -> bool:
    """Whether the process was killed at this step; False when it came to its end before."""
    command = [sys.executable, "-c", SCRIPT, what, str(root), str(step)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


@pytest.mark.lane("overlay", "loop")
def test_an_import_is_whole_or_leaves_nothing(tmp_path: Path) -> None:
    outcomes = []
    step = 0
    while True:
        root = tmp_path / str(step)
        with Store(root):
            pass
        killed = killed_at(step, "import", root)
        with Store(root) as store:
            assert list(store.check()) == []
            names = [info.name for info in store.ls()]
            if names:
                assert [change.path for change in store.changes("base")] == ["/b", "/etc"]
                assert store.capacity().promised == 4 << 20
            else:
                assert store.capacity().promised == 0
                for place in ("layers", "diff", "meta", "containers_quota", "holds", "trash"):
                    assert os.listdir(root / place) == [], place
                store.import_tar("base", io.BytesIO(LOWER), limit=Limit(4 << 20))
            assert not (root / "lost").exists()
            store.rm("base")
            store.gc()
        outcomes.append(bool(names))
        if not killed:
            break
        step += 1
    assert step > 20
    assert outcomes == sorted(outcomes)  # nothing, up to one step, and everything from there on
    assert outcomes[-1]


@pytest.mark.lane("overlay", "loop")
def test_a_rebuild_can_be_interrupted_and_repeated(tmp_path: Path) -> None:
    step = 0
    while True:
        root = tmp_path / str(step)
        with Store(root) as store:
            store.import_tar("base", io.BytesIO(LOWER))
            store.create("a b", "base", limit=Limit(4 << 20), labels={"k": "v"})
        with (root / "store.db").open("r+b") as file:
            file.write(b"not a database")
        killed = killed_at(step, "rebuild", root)
        list(check_root(root, repair=True, quick=True))
        assert list(check_root(root)) == []
        with Store(root) as store:
            assert len(store.ls()) == 2
            assert store.capacity().promised == 4 << 20
            (base,) = store.ls("kind==committed")
            assert [change.path for change in store.changes(base.name)] == ["/etc", "/etc/a"]
        assert any("store.db" in name for name in os.listdir(root / "lost"))
        if not killed:
            break
        step += 1
    assert step > 5
