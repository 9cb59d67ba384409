"""The stanzas of containerd's ``config.toml``, for 1.6 and 1.7 (version 2) and 2.x (versions 3 and 4).

An edit is one function on mappings. It runs twice: on a plain dictionary, which says what the result has
to mean, and on a document that keeps the user's text and comments; unless they agree, nothing is written.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from layerlimit.errors import AlreadyExists, InvalidArgument, NotSupported
from layerlimit.setup.edit import Edit
from layerlimit.setup.tables import Table, at, drop_empty, made_table, made_tables, plain, under

_CRI_1: Final = "io.containerd.grpc.v1.cri"
_CRI_RUNTIME: Final = "io.containerd.cri.v1.runtime"
_CRI_IMAGES: Final = "io.containerd.cri.v1.images"
_TRANSFER: Final = "io.containerd.transfer.v1.local"
_DIFF: Final = "io.containerd.service.v1.diff-service"
_DIFFER: Final = "layerlimit-diff"
_WALKING: Final = "walking"  # containerd's own, which takes what nobody else does
_REMAP: Final = "remap-ids"
_OVERLAYFS: Final = {"platform": "linux", "snapshotter": "overlayfs", "differ": _WALKING}
_NEWEST: Final = 4
_RESTART: Final = "restart containerd for it to take effect: systemctl restart containerd"


@dataclass(frozen=True, slots=True)
class Stanzas:
    """What is asked for: the names, their socket and root.

    ``default`` makes the first one CRI's default, ``runtimes`` adds a CRI runtime handler of the same name
    for each, ``differ`` has images unpacked by ours. ``remap_ids`` says that this kernel mounts layers with
    mapped owners: containerd 2.3 and later is told, and then copies none to change their owners.
    """

    snapshotters: tuple[str, ...]
    address: str
    root: str
    default: bool = False
    runtimes: bool = False
    differ: bool = False
    remap_ids: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """The configuration's ``version`` and what containerd is installed (None: unknown)."""

    version: int
    installed: tuple[int, int] | None

    @property
    def is_2(self) -> bool:
        """Whether containerd is 2.x, as far as can be known."""
        return self.installed >= (2, 0) if self.installed else self.version >= 3

    @property
    def takes_differs(self) -> bool:
        """Whether a differ can be a proxy plugin: 1.6 would not start with one."""
        return self.installed >= (1, 7) if self.installed else self.version >= 3

    @property
    def maps_owners(self) -> bool:
        """Whether a mount with mapped owners reaches layers that are mounts themselves: limited ones."""
        return self.installed is not None and self.installed >= (2, 3)


def set_up_containerd(
    path: Path, text: str | None, stanzas: Stanzas, *, installed: tuple[int, int] | None
) -> Edit:
    """The edit that tells containerd of our snapshotters; one that changes nothing when it knows them.

    InvalidArgument when the file is not valid, AlreadyExists when it says otherwise than we would,
    NotSupported when this containerd cannot do what is asked.
    """
    engine = _engine(path, text, installed)
    notes = [_RESTART]
    if engine.version == 1:
        notes.append(f"{path} has no 'version' (so it is version 1): only the proxy plugins were written")
    if stanzas.default or stanzas.runtimes:
        _require_cri(path, stanzas, engine)
    if stanzas.differ:
        _require_differs(path, engine)
    return _edit(path, text, lambda table: _add(path, table, stanzas, engine), notes)


def undo_containerd(path: Path, text: str | None, snapshotters: tuple[str, ...]) -> Edit:
    """The edit that removes all that names these snapshotters; other stanzas stay."""
    if text is None:
        return Edit(path, None, "")
    _engine(path, text, None)
    return _edit(path, text, lambda table: _take_out(table, snapshotters), [_RESTART])


def _engine(path: Path, text: str | None, installed: tuple[int, int] | None) -> Engine:
    table = _parse(path, text or "")
    if not table:
        if installed is None:
            raise NotSupported(
                f"{path} says nothing and there is no containerd to ask for its version",
                hint="install containerd, or write 'version = 3' (2 for containerd 1.x) into the file",
                code="setup.version",
            )
        return Engine(2 if installed < (2, 0) else 3, installed)
    version = table.get("version", 1)
    if not isinstance(version, int) or not 1 <= version <= _NEWEST:
        raise NotSupported(
            f"{path} is of version {version!r}; 1 to {_NEWEST} are known",
            hint="add the stanzas by hand: docs/operations.md shows them",
            code="setup.version",
        )
    return Engine(version, installed)


def _require_differs(path: Path, engine: Engine) -> None:
    _require_version(path, engine)
    if not engine.takes_differs:
        raise NotSupported(
            "containerd 1.6 does not start with a differ of others"
            if engine.installed
            else "there is no containerd to ask whether it knows differs of others",
            hint="leave --differ out, or use containerd 1.7 or later",
            code="setup.version",
        )


def _require_version(path: Path, engine: Engine) -> None:
    if engine.version == 1:
        raise NotSupported(
            f"{path} has no 'version', and its plugins have other names than today's",
            hint="migrate it with 'containerd config migrate' first",
            code="setup.version",
        )


def _require_cri(path: Path, stanzas: Stanzas, engine: Engine) -> None:
    _require_version(path, engine)
    if (
        stanzas.runtimes
        and engine.version == 2
        and engine.installed is not None
        and engine.installed < (1, 7)
    ):
        raise NotSupported(
            "containerd 1.6 ignores the snapshotter of a runtime, so pods would have no limit",
            hint="use --default there, or containerd 1.7 or later",
            code="setup.version",
        )
    if stanzas.runtimes and engine.version == 2 and engine.installed is None:
        raise NotSupported(
            "there is no containerd to ask whether it knows the snapshotter of a runtime",
            hint="run this where containerd is installed",
            code="setup.version",
        )


# -- the edit, on mappings ---------------------------------------------------------------------------


def _add(path: Path, table: Table, stanzas: Stanzas, engine: Engine) -> None:
    if not table:
        table["version"] = engine.version
    for name in stanzas.snapshotters:
        _add_snapshotter(path, table, name, stanzas, engine)
    if stanzas.differ:
        _add_differ(path, table, stanzas)
    if engine.is_2 and engine.version >= 2:
        for name in stanzas.snapshotters:
            _add_unpacking(path, table, name, _DIFFER if stanzas.differ else _WALKING)
    if stanzas.default:
        _make_default(path, table, stanzas.snapshotters[0], engine)
    if stanzas.runtimes:
        for name in stanzas.snapshotters:
            _add_runtime(path, table, name, engine)


def _add_snapshotter(path: Path, table: Table, name: str, stanzas: Stanzas, engine: Engine) -> None:
    proxies = under(table, "proxy_plugins")
    capable = {"capabilities": [_REMAP]} if stanzas.remap_ids and engine.maps_owners else {}
    exports = {"root": stanzas.root, "enable_remote_snapshot_annotations": "true"}
    wanted = {"type": "snapshot", "address": stanzas.address, "exports": exports}
    if name in proxies:
        _put(path, proxies, name, wanted, f"proxy_plugins.{name}")
        for key, value in capable.items():
            if key not in proxies[name]:  # capabilities that are there are what somebody decided
                proxies[name][key] = value
        return
    proxies[name] = made_table(proxies, {**wanted, **capable, "exports": exports})


def _add_differ(path: Path, table: Table, stanzas: Stanzas) -> None:
    """Our differ, and its place before containerd's own, for what clients unpack."""
    proxies = under(table, "proxy_plugins")
    wanted = {"type": "diff", "address": stanzas.address}
    _put(path, proxies, _DIFFER, wanted, f"proxy_plugins.{_DIFFER}")
    service = under(table, "plugins", _DIFF)
    if "default" not in service:
        service["default"] = [_DIFFER, _WALKING]
        return
    order = service["default"]
    if _DIFFER not in order:
        order.insert(list(order).index(_WALKING) if _WALKING in order else len(order), _DIFFER)


def _add_unpacking(path: Path, table: Table, name: str, differ: str) -> None:
    """What pulls may unpack into; naming one replaces the built-in list, so overlayfs is named again."""
    transfer = under(table, "plugins", _TRANSFER)
    named = list(transfer.get("unpack_config", []))
    known = [index for index, each in enumerate(named) if each.get("snapshotter") == name]
    if known:
        if differ == _DIFFER:
            for index in known:
                _use_differ(path, transfer["unpack_config"][index], name)
        return
    more = [] if named else [dict(_OVERLAYFS)]
    more.append({"platform": "linux", "snapshotter": name, "differ": differ})
    if not named:
        transfer["unpack_config"] = made_tables(transfer, more)
        return
    for each in more:
        transfer["unpack_config"].append(made_table(transfer, each))


def _use_differ(path: Path, unpacking: Table, name: str) -> None:
    if unpacking.get("differ", _WALKING) not in (_WALKING, _DIFFER):
        raise _conflict(path, f"images are unpacked into {name} by the differ {unpacking['differ']!r}")
    unpacking["differ"] = _DIFFER


def _make_default(path: Path, table: Table, name: str, engine: Engine) -> None:
    images = _cri(table, engine, images=True)
    now = images.get("snapshotter", "overlayfs")
    if now not in ("overlayfs", name):
        raise _conflict(path, f"CRI's snapshotter is {now!r}")
    images["snapshotter"] = name


def _add_runtime(path: Path, table: Table, name: str, engine: Engine) -> None:
    runtimes = under(_cri(table, engine, images=False), "runtimes")
    like = plain(runtimes.get("runc", {}))  # the cgroup driver must be that of the node's other pods
    wanted = {**like, "runtime_type": like.get("runtime_type", "io.containerd.runc.v2"), "snapshotter": name}
    _put(path, runtimes, name, wanted, f"runtimes.{name}")
    if engine.version >= 3:
        platforms = under(table, "plugins", _CRI_IMAGES, "runtime_platforms")
        _put(path, platforms, name, {"snapshotter": name}, f"runtime_platforms.{name}")


def _cri(table: Table, engine: Engine, *, images: bool) -> Table:
    if engine.version == 2:
        return under(table, "plugins", _CRI_1, "containerd")
    if images:
        return under(table, "plugins", _CRI_IMAGES)
    return under(table, "plugins", _CRI_RUNTIME, "containerd")


def _take_out(table: Table, names: tuple[str, ...]) -> None:
    addresses = set()
    for name in names:
        found = at(table, "proxy_plugins", name)
        if found.get("type") == "snapshot":
            addresses.add(found.get("address"))
            del table["proxy_plugins"][name]
    unpacking = at(table, "plugins", _TRANSFER).get("unpack_config")
    if unpacking:
        ours = [index for index, each in enumerate(unpacking) if each.get("snapshotter") in names]
        for index in reversed(ours):
            del unpacking[index]
        if ours and all(plain(each) == _OVERLAYFS for each in unpacking):
            del table["plugins"][_TRANSFER]["unpack_config"]
    _take_out_differ(table, addresses)
    places: tuple[tuple[str, ...], ...] = ((_CRI_1, "containerd"), (_CRI_IMAGES,))
    for place in places:
        if at(table, "plugins", *place).get("snapshotter") in names:
            del at(table, "plugins", *place)["snapshotter"]
    places = (
        (_CRI_1, "containerd", "runtimes"),
        (_CRI_RUNTIME, "containerd", "runtimes"),
        (_CRI_IMAGES, "runtime_platforms"),
    )
    for place in places:
        found = at(table, "plugins", *place)
        for name in names:
            if found.get(name, {}).get("snapshotter") == name:
                del found[name]
    drop_empty(
        table,
        ("proxy_plugins",),
        ("plugins", _DIFF),
        ("plugins", _TRANSFER),
        ("plugins", _CRI_IMAGES, "runtime_platforms"),
        ("plugins", _CRI_IMAGES),
        ("plugins", _CRI_RUNTIME, "containerd", "runtimes"),
        ("plugins", _CRI_RUNTIME, "containerd"),
        ("plugins", _CRI_RUNTIME),
        ("plugins", _CRI_1, "containerd", "runtimes"),
        ("plugins", _CRI_1, "containerd"),
        ("plugins", _CRI_1),
        ("plugins",),
    )


def _take_out_differ(table: Table, addresses: set[Any]) -> None:
    """Our differ goes with the last snapshotter at its address."""
    proxies = at(table, "proxy_plugins")
    ours = at(proxies, _DIFFER)
    address = ours.get("address")
    stay = any(at(proxies, name).get("address") == address for name in proxies if name != _DIFFER)
    if ours.get("type") != "diff" or address not in addresses or stay:
        return
    del proxies[_DIFFER]
    service = at(table, "plugins", _DIFF)
    order = service.get("default", [])
    if _DIFFER in order:
        order.remove(_DIFFER)
        if list(order) == [_WALKING]:
            del service["default"]


def _put(path: Path, table: Table, key: str, wanted: Mapping[str, Any], called: str) -> None:
    if key not in table:
        table[key] = made_table(table, wanted)
        return
    found = plain(table[key])
    # What the user added to ours is his; what contradicts it is for him to resolve.
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in wanted.items()):
        raise _conflict(path, f"there is a {called} that says otherwise")


def _conflict(path: Path, what: str) -> AlreadyExists:
    return AlreadyExists(
        f"{path}: {what}",
        hint="take ours out with --remove, or change the file by hand; nothing was written",
        code="setup.conflict",
    )


# -- text --------------------------------------------------------------------------------------------


def _edit(path: Path, text: str | None, change: Callable[[Table], None], notes: list[str]) -> Edit:
    meant = _parse(path, text or "")
    try:
        change(meant)
    except (TypeError, AttributeError) as error:  # a number where a table belongs
        raise InvalidArgument(
            f"{path} is TOML, but not a configuration of containerd's",
            hint="correct it first; nothing was written",
            code="setup.invalid",
        ) from error
    if meant == _parse(path, text or ""):
        return Edit(path, text, text or "")
    try:
        document = tomlkit.parse(text or "")
        change(document)
        after = tomlkit.dumps(document).rstrip("\n") + "\n"  # what is taken out leaves blank lines
        agrees = tomllib.loads(after) == meant
    except (TOMLKitError, ValueError, TypeError, KeyError, AttributeError):
        agrees = False
    if not agrees:
        raise NotSupported(
            f"{path} is written in a way that cannot be edited without rewriting all of it",
            hint="add the stanzas by hand: docs/operations.md shows them",
            code="setup.form",
        )
    return Edit(path, text, after, tuple(notes))


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(
            f"{path} is not valid TOML: {error}",
            hint="correct it first; nothing was written",
            code="setup.invalid",
        ) from error
