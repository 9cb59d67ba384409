"""Mapped owners: what the labels say, and which keys are copies of images with other owners."""

from __future__ import annotations

import pytest

from layerlimit.containerd.keys import read_key
from layerlimit.containerd.mapped import mapped_root, owners_inside

UIDS, GIDS = "containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"
DIGEST = "sha256:" + "0f" * 32


def test_owners_on_disk_are_those_that_the_container_sees() -> None:
    labels = {UIDS: "0:1000:500,500:9000:10", GIDS: "5:7:2,0:2000:5"}
    assert mapped_root(labels) == (1000, 2000)
    inside = owners_inside(labels)
    assert inside is not None
    assert [inside(*owner) for owner in ((1000, 2000), (1499, 2004), (9009, 8))] == [
        (0, 0),
        (499, 4),
        (509, 6),
    ]
    assert [inside(*owner) for owner in ((999, 2005), (1500, 9), (0, 0))] == [(65534, 65534)] * 3
    assert owners_inside({}) is None


@pytest.mark.parametrize("client", [f"{DIGEST}-remap", f"{DIGEST}-100000-100000-remap"])
def test_a_copy_of_an_image_is_not_limited(client: str) -> None:
    key = read_key(f"k8s.io/7/{client}", f"k8s.io/3/{DIGEST}")
    assert key.is_copy_of_image
    assert key.is_image_content


@pytest.mark.parametrize("client", ["web-remap", f"{DIGEST[7:]}-remap", f"{DIGEST}", f"{DIGEST}-remap-x"])
def test_a_container_cannot_be_called_like_one(client: str) -> None:
    assert not read_key(f"default/7/{client}", f"default/3/{DIGEST}").is_image_content
