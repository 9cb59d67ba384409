"""What victims of strace.py do: operations of a driver, each in a process of its own (forks.py)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from layerlimit import Driver, Limit, adopt
from tests.driver.forks import serve


def _open(driver: Driver | None, root: str) -> None:
    Driver(root)


def _create(driver: Driver, id: str, parent: str, size: int) -> None:
    driver.create(id, parent, limit=Limit(size) if size else None)


def _get(driver: Driver, id: str, read_only: bool = False) -> None:
    driver.get(id, read_only=read_only)


def _put(driver: Driver, id: str, read_only: bool = False) -> None:
    driver.put(id, read_only=read_only)


def _mounts(driver: Driver, id: str) -> None:
    driver.mounts(id)


def _release(driver: Driver, id: str) -> None:
    driver.release(id)


def _remove(driver: Driver, id: str) -> None:
    driver.remove(id)


def _resize(driver: Driver, id: str, size: int) -> None:
    driver.resize(id, Limit(size))


def _apply(driver: Driver, id: str, tar: str) -> None:
    with open(tar, "rb") as stream:
        driver.apply_diff(id, io.BytesIO(stream.read()))


def _copy(driver: Driver, source: str, target: str) -> None:
    driver.copy(source, target)


def _diff(driver: Driver, id: str) -> None:
    with driver.diff(id) as stream:
        while stream.read(1 << 20):
            pass


def _mounted(driver: Driver, id: str) -> None:
    with driver.mounted(id) as path:
        os.stat(path)


def _cleanup(driver: Driver) -> None:
    driver.cleanup()


def _adopt(driver: Driver | None, root: str) -> None:
    adopt(root, owner_shift=100000)


OPERATIONS: dict[str, Callable[..., None]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _open, _create, _get, _put, _mounts, _release, _remove, _resize, _apply, _copy, _diff, _mounted,
        _cleanup, _adopt,
    )
}  # fmt: skip
WITHOUT_DRIVER = {"open", "adopt"}


def _ready(request: dict[str, Any]) -> Callable[[], None]:
    operation = request["operation"]
    driver = None if operation in WITHOUT_DRIVER else Driver(request["root"])
    return partial(OPERATIONS[operation], driver, *request["arguments"])


if __name__ == "__main__":
    serve(_ready)
