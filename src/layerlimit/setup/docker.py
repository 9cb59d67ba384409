"""The keys of Docker's ``daemon.json``: the storage driver and the containerd image store.

Both are written: on a data root that another driver has used, the driver's name alone is not enough.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from layerlimit.errors import AlreadyExists, InvalidArgument
from layerlimit.setup.edit import Edit

_DRIVER: Final = "storage-driver"
_FEATURES: Final = "features"
_STORE: Final = "containerd-snapshotter"
_RESTART: Final = "restart Docker for it to take effect: systemctl restart docker"
DEFAULT_DATA_ROOT: Final = "/var/lib/docker"


def set_up_docker(path: Path, text: str | None, snapshotter: str) -> Edit:
    """The edit that makes Docker use the snapshotter for all containers.

    InvalidArgument when the file is not a JSON object, AlreadyExists when it names another driver or switches
    on what Docker cannot combine with it.
    """
    config = _parse(path, text)
    features = config.get(_FEATURES, {})
    if not isinstance(features, dict):
        raise InvalidArgument(
            f"{path}: {_FEATURES} is no object",
            hint="correct it first; nothing was written",
            code="setup.invalid",
        )
    if config.get(_DRIVER, snapshotter) != snapshotter:
        raise _conflict(path, f'"{_DRIVER}" is {json.dumps(config[_DRIVER])}', "take that key out first")
    if features.get(_STORE, True) is not True:
        raise _conflict(path, f'the feature "{_STORE}" is switched off', "take that key out first")
    if config.get("userns-remap"):
        raise _conflict(
            path, '"userns-remap" switches off the image store that limits need', "take that key out first"
        )
    notes = [
        _RESTART,
        f"containerd has to know it too: layerlimit setup containerd --snapshotter {snapshotter}",
    ]
    notes.append(
        f'for "docker run --storage-opt size=": the daemon needs docker_root = '
        f'"{config.get("data-root", DEFAULT_DATA_ROOT)}" in its configuration'
    )
    notes.append("images and containers of another storage driver are not seen while this one is in use")
    wanted = {**config, _DRIVER: snapshotter, _FEATURES: {**features, _STORE: True}}
    return _edit(path, text, config, wanted, notes)


def undo_docker(path: Path, text: str | None, snapshotter: str) -> Edit:
    """The edit that takes both keys out, if the driver is the snapshotter; else one that changes nothing."""
    config = _parse(path, text)
    wanted = dict(config)
    if config.get(_DRIVER) == snapshotter:
        del wanted[_DRIVER]
        features = {key: value for key, value in (config.get(_FEATURES) or {}).items() if key != _STORE}
        wanted[_FEATURES] = features
        if not features:
            del wanted[_FEATURES]
    notes = [
        _RESTART,
        f'Docker chooses again by itself; write the feature "{_STORE}" back if it was there before',
    ]
    return _edit(path, text, config, wanted, notes)


def _edit(
    path: Path, text: str | None, config: dict[str, Any], wanted: dict[str, Any], notes: list[str]
) -> Edit:
    if wanted == config:
        return Edit(path, text, text or "")
    indent = re.search(r"\n([ \t]+)\"", text or "")
    after = json.dumps(wanted, indent=indent[1] if indent else 4, ensure_ascii=False) + "\n"
    return Edit(path, text, after, tuple(notes))


def _parse(path: Path, text: str | None) -> dict[str, Any]:
    if not (text or "").strip():
        return {}
    try:
        config = json.loads(text or "", object_pairs_hook=_object)
    except ValueError as error:
        raise InvalidArgument(
            f"{path} is not valid JSON: {error}",
            hint="correct it first; nothing was written",
            code="setup.invalid",
        ) from error
    if not isinstance(config, dict):
        raise InvalidArgument(
            f"{path} is not a JSON object", hint="correct it first; nothing was written", code="setup.invalid"
        )
    return config


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _conflict(path: Path, what: str, hint: str) -> AlreadyExists:
    return AlreadyExists(f"{path}: {what}", hint=f"{hint}; nothing was written", code="setup.conflict")
