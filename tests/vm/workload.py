"""Runs inside the guest: works on a store in a seeded random order until the power is cut.

``python -m tests.vm.workload DEVICE ROOT SEED [MUTANT]``: the disk, the store on it, what decides
everything that is random. Before each operation an event says which entries it will change and to what
(``begin``), after its return another that it returned (``end``), and when it raised, what (``failed``); they
lie on the disk itself, see :mod:`tests.vm.volatile_disk`.

An entry's state is a JSON object: ``kind``, ``parent``, ``limit`` (bytes, or null), ``labels``, ``content``
(for what cannot be written to: the digest of each file, see :func:`content_of`), ``fresh`` (was never
written to).

A mutant takes a sync out of the product, to prove that the loss would be seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import random
import sqlite3
import stat
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import layerlimit
from layerlimit.driver import Driver
from layerlimit.store.database import Database
from tests.vm.volatile_disk import BLOCK, EVENTS

State = dict[str, Any]
MIB = 1 << 20
MUTANTS = ("commit without sync", "database without sync")
KEPT = "commit what is mounted elsewhere"
MANY = 10  # entries, beyond which more is removed than made


def content_of(top: Path) -> dict[str, str]:
    """Every name below ``top`` with its type, mode, size and the digest of what it holds."""
    found = {}
    for where, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(where) / name
            status = path.lstat()
            mode = f"{stat.S_IMODE(status.st_mode):o}"
            if stat.S_ISLNK(status.st_mode):
                said = f"l {path.readlink()}"
            elif stat.S_ISDIR(status.st_mode):
                said = f"d {mode}"
            else:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
                said = f"f {mode} {status.st_size} {digest}"
            found[str(path.relative_to(top))] = said
    return found


@contextlib.contextmanager
def _mounts_kept() -> Iterator[None]:
    """A process whose mount namespace has what is mounted here now."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield
        finally:
            process.kill()


class Events:
    """Writes events to the end of the disk; returns when the disk has them."""

    def __init__(self, device: Path) -> None:
        self._fd = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self._at = os.lseek(self._fd, 0, os.SEEK_END) - EVENTS

    def tell(self, event: dict[str, Any]) -> None:
        data = json.dumps(event).encode()
        with mmap.mmap(-1, -(-len(data) // BLOCK) * BLOCK) as page:  # aligned, as O_DIRECT wants it
            page.write(data)
            assert os.pwrite(self._fd, page, self._at) == len(page)


class Workload:
    def __init__(self, device: Path, root: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._events = Events(device)
        self._number = 0
        self._state: dict[str, State] = {}
        self._content: dict[str, dict[str, str]] = {}  # of active entries, too
        self._store = layerlimit.Store(root)

    def run(self) -> None:
        choices: list[tuple[int, Callable[[], None]]] = [
            (4, self._create),
            (6, self._write),
            (4, self._commit),
            (3, self._commit_kept),
            (2, self._import),
            (2, self._resize),
            (1, self._view),
            (1, self._apply),
            (2, self._rename),
            (2, self._label),
            (2, self._remove),
            (1, self._collect),
        ]
        weights = [weight for weight, _ in choices]
        while True:
            if len(self._state) > MANY:
                self._remove()
            else:
                self._random.choices([each for _, each in choices], weights)[0]()

    # -- one operation -----------------------------------------------------------------------------

    def _do(self, what: str, changes: dict[str, State | None], act: Callable[[], object]) -> None:
        self._number += 1
        self._events.tell({"begin": self._number, "do": what, "changes": changes})
        try:
            act()
        except BaseException:
            self._events.tell({"failed": traceback.format_exc()})
            raise
        self._events.tell({"end": what})
        for name, state in changes.items():
            if state is None:
                del self._state[name]
            else:
                self._state[name] = state

    def _name(self) -> str:
        return f"{self._random.choice(('layer', 'web/app:1.0', 'größe', 'a b'))}-{self._number + 1}"

    def _pick(self, *kinds: str, limited: bool = False) -> str | None:
        names = [
            name
            for name, state in self._state.items()
            if state["kind"] in kinds and (state["limit"] or not limited)
        ]
        return self._random.choice(names) if names else None

    def _labels(self) -> dict[str, str]:
        return {f"key{n}": f"{self._random.random()}" for n in range(self._random.randrange(3))}

    def _parent(self) -> str:
        return (self._random.random() < 0.6 and self._pick("committed")) or ""

    def _new(self, kind: str, parent: str, limit: int | None, **more: Any) -> State:
        return {
            "kind": kind,
            "parent": parent,
            "limit": limit,
            "labels": self._labels(),
            "content": None,
            "fresh": False,
        } | more

    def _create(self) -> None:
        name, parent = self._name(), self._parent()
        size = self._random.randrange(8, 24) * MIB if self._random.random() < 0.6 else None
        state = self._new("active", parent, size, fresh=True)
        limit = layerlimit.Limit(size) if size else None
        self._content[name] = dict(self._content[parent]) if parent else {}
        self._do(
            "create",
            {name: state},
            lambda: self._store.create(
                name, parent, limit=limit, unlimited=size is None, labels=state["labels"]
            ),
        )

    def _view(self) -> None:
        parent = self._pick("committed")
        if parent is None:
            return
        name = self._name()
        state = self._new("view", parent, None, content=self._content[parent])
        self._content[name] = self._content[parent]
        self._do("view", {name: state}, lambda: self._store.view(name, parent, labels=state["labels"]))

    def _write(self) -> None:
        name = self._pick("active")
        if name is not None:
            self._write_into(name)

    def _write_into(self, name: str, *, before_end: Callable[[], None] = lambda: None) -> None:
        def act() -> None:
            with self._store.mounted(name) as top:
                for _ in range(self._random.randrange(1, 8)):
                    self._change_something(top)
                self._content[name] = content_of(top)
                before_end()

        self._do("write", {name: self._state[name] | {"fresh": False}}, act)

    def _change_something(self, top: Path) -> None:
        present = [path for path in sorted(top.rglob("*")) if path.is_file() and not path.is_symlink()]
        choice = self._random.random()
        if choice < 0.15 and present:
            self._random.choice(present).unlink()
        elif choice < 0.3 and present:
            with self._random.choice(present).open("ab") as file:
                file.write(self._bytes(5000))
        elif choice < 0.4 and present:
            self._random.choice(present).chmod(self._random.choice((0o600, 0o755)))
        elif choice < 0.5:
            (top / f"link{self._random.randrange(10**6)}").symlink_to("target")
        elif len(present) < 25:
            path = top / f"d{self._random.randrange(3)}" / f"f{self._random.randrange(10**6)}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self._bytes(60000))

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randrange(most))

    def _apply(self) -> None:
        name = self._pick("active")
        if name is not None:
            tar = self._tar(self._content[name])
            changed = self._state[name] | {"fresh": False}
            self._do("apply", {name: changed}, lambda: self._store.apply(name, tar))

    def _import(self) -> None:
        name = self._name()
        size = self._random.randrange(8, 24) * MIB if self._random.random() < 0.4 else None
        self._content[name] = {}
        tar = self._tar(self._content[name])
        state = self._new("committed", "", size, content=self._content[name])
        limit = layerlimit.Limit(size) if size else None
        self._do(
            "import",
            {name: state},
            lambda: self._store.import_tar(name, tar, limit=limit, labels=state["labels"]),
        )

    def _tar(self, content: dict[str, str]) -> io.BytesIO:
        """A layer tar; what it holds is added to ``content``."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for _ in range(self._random.randrange(1, 5)):
                data = self._bytes(60000)
                member = tarfile.TarInfo(f"t{self._random.randrange(10**6)}")
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
                digest = hashlib.sha256(data).hexdigest()[:16]
                content[member.name] = f"f 644 {len(data)} {digest}"
        stream.seek(0)
        return stream

    def _commit(self) -> None:
        name = self._pick("active")
        if name is not None:
            self._commit_it(name, "commit")

    def _commit_kept(self) -> None:
        """Commits what another mount namespace keeps mounted: no last unmount has synced it."""
        name = self._pick("active")
        if name is None:
            return
        with contextlib.ExitStack() as stack:
            self._write_into(name, before_end=lambda: stack.enter_context(_mounts_kept()))
            self._commit_it(name, KEPT)

    def _commit_it(self, name: str, what: str) -> None:
        new, old = self._name(), self._state[name]
        content = self._content.pop(name)
        self._content[new] = content
        labels = self._labels()
        state = old | {"kind": "committed", "labels": labels, "content": content, "fresh": False}
        self._do(what, {name: None, new: state}, lambda: self._store.commit(name, new, labels=labels))

    def _resize(self) -> None:
        name = self._pick("active", limited=True)
        if name is None:
            return
        size = self._state[name]["limit"] + self._random.randrange(1, 8) * MIB
        mounted = self._random.random() < 0.5

        def act() -> None:
            if mounted:
                with self._store.mounted(name):
                    self._store.resize(name, layerlimit.Limit(size))
            else:
                self._store.resize(name, layerlimit.Limit(size))

        self._do("resize mounted" if mounted else "resize", {name: self._state[name] | {"limit": size}}, act)

    def _rename(self) -> None:
        name = self._pick("active", "committed", "view")
        if name is None:
            return
        new = self._name()
        changes: dict[str, State | None] = {name: None, new: self._state[name]}
        for child in self._children(name):
            changes[child] = self._state[child] | {"parent": new}
        self._content[new] = self._content.pop(name)
        self._do("rename", changes, lambda: self._store.rename(name, new))

    def _label(self) -> None:
        name = self._pick("active", "committed", "view")
        if name is not None:
            labels = self._labels()
            changed = self._state[name] | {"labels": labels}
            self._do("label", {name: changed}, lambda: self._store.update(name, labels))

    def _children(self, name: str) -> list[str]:
        return [child for child, state in self._state.items() if state["parent"] == name]

    def _remove(self) -> None:
        free = [name for name in self._state if not self._children(name)]
        if free:
            name = self._random.choice(free)
            self._do("rm", {name: None}, lambda: self._store.rm(name))

    def _collect(self) -> None:
        self._do("gc", {}, self._store.gc)


def mutate(mutant: str) -> None:
    """Takes a sync out of the product."""
    commit, database = MUTANTS
    if mutant == commit:
        assert callable(Driver.sync)
        Driver.sync = lambda *_: None  # type: ignore[method-assign]
    else:
        assert mutant == database
        original = Database.connection

        def connection(self: Database) -> sqlite3.Connection:
            found = original(self)
            found.execute("PRAGMA synchronous = OFF")
            return found

        Database.connection = connection  # type: ignore[method-assign]


if __name__ == "__main__":
    device, root, seed, *mutants = sys.argv[1:]
    for mutant in mutants:
        mutate(mutant)
    Workload(Path(device), Path(root), int(seed)).run()
