"""What victims of the crash tests do: every operation of a store, each in a process of its own (forks.py).

``python -m tests.store.victim [MUTANT]``: with a mutant of mutants.py in the code.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from layerlimit import Limit, Policy
from layerlimit.archive.docker_archive import DockerArchive
from layerlimit.store import Store, check_root
from tests.archive.images import layer_tar
from tests.driver.forks import serve

MIB = 1 << 20
LOWER = layer_tar({"etc/": b"", "etc/a": b"a" * 5000, "etc/gone": b"gone"})
UPPER = layer_tar({"b": b"b", "etc/": b"", "etc/.wh.gone": b""})


def _limit(size: int) -> Limit | None:
    return Limit(size) if size else None


def _create(store: Store, name: str, parent: str, size: int) -> None:
    store.create(name, parent, limit=_limit(size), labels={"a": "1"})


def _view(store: Store, name: str, parent: str) -> None:
    store.view(name, parent)


def _import_tar(store: Store, name: str, size: int) -> None:
    store.import_tar(name, io.BytesIO(LOWER), io.BytesIO(UPPER), limit=_limit(size), labels={"a": "1"})


def _import_over(store: Store, name: str, parent: str, size: int) -> None:
    store.import_tar(name, io.BytesIO(UPPER), parent=parent, limit=_limit(size))


def _import_image(store: Store, name: str, archive: str) -> None:
    with DockerArchive(Path(archive), "web:1") as image:
        store.import_image(name, image)


def _commit(store: Store, name: str, new: str, durable: bool) -> None:
    store.commit(name, new, durable=durable, labels={"b": "2"})


def _commit_attached(store: Store, name: str, new: str) -> None:
    store.commit(name, new, detach=False)


def _rm(store: Store, name: str) -> None:
    store.rm(name)


def _rm_and_reap(store: Store, name: str) -> None:
    store.rm(name)
    store.gc()


def _resize(store: Store, name: str, size: int) -> None:
    store.resize(name, _limit(size))


def _rename(store: Store, name: str, new: str) -> None:
    store.rename(name, new)


def _update(store: Store, name: str) -> None:
    store.update(name, {"b": "2", "c": "3"})


def _mount(store: Store, name: str) -> None:
    store.mount(name)


def _mounts(store: Store, name: str) -> None:
    store.mounts(name)


def _umount(store: Store, name: str) -> None:
    store.umount(name)


def _apply(store: Store, name: str) -> None:
    store.apply(name, io.BytesIO(UPPER))


def _configure(store: Store) -> None:
    store.configure(Policy(overcommit=1.5, floor=MIB, default_limit=8 * MIB))


def _gc(store: Store) -> None:
    store.gc()


def _open(_: Store | None, root: str) -> None:
    Store(root)


def _repair(_: Store | None, root: str) -> None:
    list(check_root(root, repair=True, quick=True))


OPERATIONS: dict[str, Callable[..., None]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _create, _view, _import_tar, _import_over, _import_image, _commit, _commit_attached, _rm,
        _rm_and_reap, _resize, _rename, _update, _mount, _mounts, _umount, _apply, _configure, _gc, _open,
        _repair,
    )
}  # fmt: skip
WITHOUT_STORE = {"open", "repair"}
BEFORE: dict[str, Callable[[Store], None]] = {"gc": lambda store: store.rm("doomed")}


def perform(store: Store | None, operation: str, *arguments: Any) -> None:
    """The operation, here and now."""
    OPERATIONS[operation](store, *arguments)


def _ready(request: dict[str, Any]) -> Callable[[], None]:
    operation = request["operation"]
    store = None if operation in WITHOUT_STORE else Store(request["root"])
    if store is not None and operation in BEFORE:
        BEFORE[operation](store)
    return partial(perform, store, operation, *request["arguments"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from tests.store import mutants

        mutants.MUTANTS[sys.argv[1]].apply()
    serve(_ready)
