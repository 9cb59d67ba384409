"""One of the processes of test_stress.py: runs a cycle for every line on stdin, and says how it went.

``python -m tests.driver.stress ROOT``; a line is a number that decides the cycle. The answer is a line of
JSON: the outcome of every call, the errors that contention does not explain, and the number of open
descriptors.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from layerlimit import AlreadyExists, Busy, Driver, Error, Limit, NotFound

LIMIT = 6 << 20
# id: (parent, limited). Two children share a limited parent with a limited child.
IDS = {"a": ("parent", False), "b": ("parent", True), "c": ("base", True), "d": ("parent", False)}

# What a call may say because of what the other processes do meanwhile, and nothing else.
CONTENTION: dict[str, tuple[type[Error], ...]] = {
    "create": (AlreadyExists,),  # another one was faster
    "get": (NotFound,),  # another one removed it
    "put": (NotFound, Busy),  # … or has a file open in it, so that the last put cannot unmount it
    "mounted": (NotFound,),
    "remove": (NotFound, Busy),  # … holds it
    "parent": (),
}


class Cycle:
    """One create, get, put, remove of a shared id."""

    def __init__(self, driver: Driver, seed: int) -> None:
        self.driver = driver
        self.random = random.Random(seed)
        self.id = self.random.choice(list(IDS))
        self.outcomes: list[str] = []
        self.errors: list[str] = []

    def call(self, name: str, function: Callable[[], object]) -> bool:
        """Call it; whether it succeeded."""
        try:
            function()
        except CONTENTION[name] as error:
            self.outcomes.append(f"{name} {type(error).__name__}")
            return False
        except Exception:
            self.outcomes.append(f"{name} FAILED")
            self.errors.append(traceback.format_exc())
            return False
        self.outcomes.append(f"{name} ok")
        return True

    def run(self) -> None:
        driver, id = self.driver, self.id
        parent, limited = IDS[id]
        self.call("create", lambda: driver.create(id, parent, limit=Limit(LIMIT) if limited else None))
        got = self.call("get", lambda: driver.get(id))
        if self.random.random() < 0.5:
            self.call("mounted", self.use)
        if self.random.random() < 0.1:
            self.call("parent", self.use_parent)
        if got:
            self.call("put", lambda: driver.put(id))
        force = self.random.random() < 0.5  # a killed process never puts: somebody has to force it
        self.call("remove", lambda: driver.remove(id, force=force))

    def use(self) -> None:
        """Nobody can take a mount away from a living process that holds it."""
        with self.driver.mounted(self.id) as path:
            mine = path / f"of-{os.getpid()}"
            mine.write_bytes(b"x" * 9000)
            if IDS[self.id][1]:
                space = os.statvfs(path)
                assert space.f_blocks * space.f_frsize < 2 * LIMIT, "not on its image"
            assert (path / "inherited").read_text() == IDS[self.id][0]
            assert mine.stat().st_size == 9000
            mine.unlink()

    def use_parent(self) -> None:
        with self.driver.mounted("parent") as path:
            assert (path / "inherited").read_text() == "parent"


def main(root: str) -> None:
    """Serve until stdin ends."""
    driver = Driver(Path(root), "overlay")
    for line in sys.stdin:
        cycle = Cycle(driver, int(line))
        cycle.run()
        descriptors = len(os.listdir("/proc/self/fd"))
        print(json.dumps([cycle.outcomes, cycle.errors, descriptors]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
