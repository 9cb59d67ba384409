"""Layers as JSON objects: the same keys everywhere, bytes always as integers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from layerlimit.errors import Error
from layerlimit.limit import ImageLimiter, Limit, format_size
from layerlimit.linux.statx import is_mount_point
from layerlimit.store import Capacity, Info, Store

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


def capacity_entry(capacity: Capacity) -> dict[str, Any]:
    """The disk, and what limits promise of it."""
    return {
        "size": capacity.size,
        "free": capacity.free,
        "promised": capacity.promised,
        "admissible": capacity.admissible,
        "overcommit": capacity.overcommit,
        "floor": capacity.floor,
        "full": capacity.full,
    }


def capacity_text(capacity: Capacity) -> str:
    """The same in one sentence."""
    return (
        f"limits promise {format_size(capacity.promised)} of {format_size(capacity.admissible)} "
        f"(overcommit {capacity.overcommit:g}), {format_size(capacity.free)} are free"
        + (f": less than the floor of {format_size(capacity.floor)}" if capacity.full else "")
    )


def mounted_at(store: Store, info: Info) -> list[str]:
    """Where the layer is mounted at this moment; asked of the kernel, without waiting for anybody."""
    place = f"{store.root}/mnt/{info.id}"
    return [path for path in (place, f"{place}@ro") if is_mount_point(path)]


def summary(store: Store, info: Info) -> dict[str, Any]:
    """What ``ls`` shows of a layer: read without its lock, so that a long apply does not hold it up.

    A damaged layer is shown, with an ``error`` that says what is wrong.
    """
    entry: dict[str, Any] = {
        "name": info.name,
        "kind": str(info.kind),
        "parent": info.parent or None,
        "limit": None,
        "mounted": bool(mounted_at(store, info)),
        "labels": info.labels,
    }
    try:
        entry["limit"] = limit_entry(store.limit_of(info))
    except Error as error:
        entry["error"] = {"code": error.code, "message": error.message}
    return entry


def details(store: Store, name: str) -> dict[str, Any]:
    """All about one layer.

    ``usage`` is null where it takes a walk: without a limit, unless it was recorded. ``df`` walks.
    """
    info = store.stat(name)
    limit = store.limit(name)
    state = store.state(name)
    entry = summary(store, info)
    entry["id"] = info.id
    entry["namespace"] = info.namespace
    entry["created"] = _time(info.created)
    entry["updated"] = _time(info.updated)
    entry["durable"] = info.durable
    entry["diff_id"] = info.diff_id
    entry["mounted"] = state.mounted
    entry["paths"] = mounted_at(store, info)
    entry["holds"] = state.holds
    entry["processes"] = state.processes
    entry["chain"] = store.chain(name)
    entry["children"] = store.children(name)
    entry["health"] = {"state": state.health.state, "why": state.health.why}
    entry["recovered"] = list(state.recovered)
    entry["usage"] = None
    entry["limiter"] = None
    if limit is not None or info.used_bytes is not None:
        usage = store.usage(name)
        entry["usage"] = {"bytes": usage.bytes, "inodes": usage.inodes}
    if limit is not None:
        entry["limiter"] = _limiter_entry(store, info)
    return entry


def _time(nanoseconds: int) -> str:
    """RFC 3339 in UTC, to the nanosecond."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _limiter_entry(store: Store, info: Info) -> dict[str, Any]:
    image = ImageLimiter(store.root).image(info.id)
    status = image.stat()
    return {
        "name": "image",
        "file": str(image),
        "file_bytes": status.st_size,
        "host_bytes": status.st_blocks * 512,
        "lifted_by": LIFTED_BY["image"],
    }
