"""The keys of daemon.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerlimit.errors import AlreadyExists, InvalidArgument
from layerlimit.setup import set_up_docker, undo_docker

PATH = Path("/etc/docker/daemon.json")
OURS = {"storage-driver": "layerlimit", "features": {"containerd-snapshotter": True}}


@pytest.mark.parametrize(
    "text", [None, "", "\n", "{}", '{"features": {}}', '{"storage-driver": "layerlimit"}']
)
def test_both_keys_are_written_once(text: str | None) -> None:
    edit = set_up_docker(PATH, text, "layerlimit")
    assert json.loads(edit.after) == OURS
    assert not set_up_docker(PATH, edit.after, "layerlimit").changed


def test_what_else_is_there_stays_in_its_order_and_indentation() -> None:
    text = '{\n\t"log-driver": "journald",\n\t"features": {\n\t\t"buildkit": true\n\t},\n\t"mtu": 1450\n}\n'
    edit = set_up_docker(PATH, text, "layerlimit")
    config = json.loads(edit.after)
    assert list(config) == ["log-driver", "features", "mtu", "storage-driver"]
    assert config["features"] == {"buildkit": True, "containerd-snapshotter": True}
    assert '\n\t"mtu": 1450' in edit.after
    assert undo_docker(PATH, edit.after, "layerlimit").after == text


def test_the_data_root_that_the_daemon_has_to_know_is_named() -> None:
    notes = set_up_docker(PATH, '{"data-root": "/srv/docker"}', "layerlimit").notes
    assert any('docker_root = "/srv/docker"' in note for note in notes)


@pytest.mark.parametrize(
    "config",
    [
        {"storage-driver": "overlay2"},
        {"features": {"containerd-snapshotter": False}},
        {"userns-remap": "default"},
    ],
)
def test_what_docker_cannot_combine_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(AlreadyExists) as refused:
        set_up_docker(PATH, json.dumps(config), "layerlimit")
    assert refused.value.code == "setup.conflict"


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', '{"features": []}', "{} {}"])
def test_a_file_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        set_up_docker(PATH, text, "layerlimit")


def test_undoing_leaves_another_driver_alone() -> None:
    assert not undo_docker(PATH, '{"storage-driver": "overlay2"}', "layerlimit").changed
    assert not undo_docker(PATH, None, "layerlimit").changed
    assert json.loads(undo_docker(PATH, json.dumps(OURS), "layerlimit").after) == {}
