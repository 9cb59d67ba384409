"""Layers as JSON objects: the same keys everywhere, bytes always as integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from layerlimit.driver import Driver
from layerlimit.driver.layout import Layout
from layerlimit.errors import Error
from layerlimit.limit import ImageLimiter, Limit, format_size
from layerlimit.linux.statx import is_mount_point

#: What can lift a limit, by the limiter that enforces it.
LIFTED_BY: Final = {
    "image": "only root of the host, with CAP_SYS_ADMIN and access to the image or its loop device; "
    "nothing inside a container or a user namespace",
}


def limit_entry(limit: Limit | None) -> dict[str, Any] | None:
    """``limit`` of a layer; ``inodes`` is null where they go with the bytes."""
    if limit is None:
        return None
    return {
        "bytes": limit.bytes,
        "inodes": limit.inodes,
        "ephemeral": limit.ephemeral,
        "reserve": limit.reserve,
    }


def limit_text(limit: Limit | None) -> str:
    """``limit`` for a column."""
    return "none" if limit is None else format_size(limit.bytes)


def mounted_at(driver: Driver, id: str) -> list[str]:
    """Where the layer is mounted at this moment; asked of the kernel, without waiting for anybody."""
    layout = Layout(driver.root, go=False)
    return [str(path) for path in (layout.mnt(id), layout.mnt(f"{id}@ro")) if is_mount_point(path)]


def summary(driver: Driver, id: str) -> dict[str, Any]:
    """What ``ls`` shows of a layer: read without its lock, so that a long apply does not hold it up.

    A damaged layer is shown, with an ``error`` that says what is wrong.
    """
    entry: dict[str, Any] = {
        "name": id,
        "parent": None,
        "limit": None,
        "mounted": bool(mounted_at(driver, id)),
    }
    try:
        entry["parent"] = driver.parent(id) or None
        entry["limit"] = limit_entry(driver.limit(id))
    except Error as error:
        entry["error"] = {"code": error.code, "message": error.message}
    return entry


def details(driver: Driver, id: str, children: Mapping[str, list[str]]) -> dict[str, Any]:
    """All about one layer, given :func:`children_of_all`.

    ``usage`` is null without a limit: that would be a walk, and ``df`` does it.
    """
    limit = driver.limit(id)
    state = driver.state(id)
    entry = summary(driver, id)
    entry["mounted"] = state.mounted
    entry["paths"] = mounted_at(driver, id)
    entry["holds"] = state.holds
    entry["processes"] = state.processes
    entry["chain"] = chain(driver, id)
    entry["children"] = children.get(id, [])
    entry["health"] = {"state": state.health.state, "why": state.health.why}
    entry["recovered"] = list(state.recovered)
    entry["usage"] = None
    entry["limiter"] = None
    if limit is not None:
        usage = driver.usage(id)
        entry["usage"] = {"bytes": usage.bytes, "inodes": usage.inodes}
        entry["limiter"] = _limiter_entry(driver, id)
    return entry


def _limiter_entry(driver: Driver, id: str) -> dict[str, Any]:
    image = ImageLimiter(driver.root).image(id)
    status = image.stat()
    return {
        "name": "image",
        "file": str(image),
        "file_bytes": status.st_size,
        "host_bytes": status.st_blocks * 512,
        "lifted_by": LIFTED_BY["image"],
    }


def chain(driver: Driver, id: str) -> list[str]:
    """The ancestors of a layer, the nearest first."""
    found: list[str] = []
    parent = driver.parent(id)
    while parent:
        found.append(parent)
        parent = driver.parent(parent)
    return found


def parents(driver: Driver) -> dict[str, str]:
    """The parent of each layer, ``""`` for bases; damaged layers count as bases."""
    found = {}
    for id in driver.ids():
        try:
            found[id] = driver.parent(id)
        except Error:
            found[id] = ""
    return found


def children_of_all(driver: Driver) -> dict[str, list[str]]:
    """The children of each layer that has any, sorted; bases are those of ``""``."""
    known: dict[str, list[str]] = {}
    for id, parent in parents(driver).items():
        known.setdefault(parent, []).append(id)
    return known
