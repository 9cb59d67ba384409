"""The stanzas for containerd: each version, the user's text kept, conflicts refused, undone."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from layerlimit.errors import AlreadyExists, InvalidArgument, NotSupported
from layerlimit.setup import Stanzas, set_up_containerd, undo_containerd

PATH = Path("/etc/containerd/config.toml")
STANZAS = Stanzas(("layerlimit",), "/run/layerlimit/layerlimit.sock", "/var/lib/layerlimit")
ALL = Stanzas(
    ("layerlimit", "small"), STANZAS.address, STANZAS.root, default=True, runtimes=True, differ=True
)
DIFFER = Stanzas(STANZAS.snapshotters, STANZAS.address, STANZAS.root, differ=True)
TRANSFER = "io.containerd.transfer.v1.local"
DIFF = "io.containerd.service.v1.diff-service"

DEBIAN_1_6 = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"   # Debian's place
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
DOCKER_CE = '#   Licensed …\ndisabled_plugins = ["cri"]\n\n#root = "/var/lib/containerd"\n'
NODE_2 = """\
version = 3
# the node's own

[proxy_plugins]
  [proxy_plugins.stargz] # lazy
    type = 'snapshot'
    address = '/run/stargz.sock'

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'
    [plugins.'io.containerd.cri.v1.images'.pinned_images]
      sandbox = 'registry.example/pause:3.10'
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = true
  [plugins.'io.containerd.transfer.v1.local']
    max_concurrent_downloads = 3
    unpack_config = []
"""
FILES = {
    "none, 1.6": (None, (1, 6)),
    "none, 2.x": (None, (2, 2)),
    "empty": ("", (2, 4)),
    "Debian": (DEBIAN_1_6, (1, 6)),
    "Debian's on 2.x": (DEBIAN_1_6, (2, 4)),
    "version 1": (DOCKER_CE, (2, 1)),
    "a node": (NODE_2, (2, 4)),
}


def set_up(text: str | None, stanzas: Stanzas, installed: tuple[int, int] | None) -> dict[str, Any]:
    edit = set_up_containerd(PATH, text, stanzas, installed=installed)
    return tomllib.loads(edit.after)


@pytest.mark.parametrize("name", FILES)
def test_the_proxy_plugin_is_added_once_and_the_text_stays(name: str) -> None:
    text, installed = FILES[name]
    edit = set_up_containerd(PATH, text, STANZAS, installed=installed)
    assert edit.changed
    after = tomllib.loads(edit.after)
    assert after["proxy_plugins"]["layerlimit"] == {
        "type": "snapshot",
        "address": "/run/layerlimit/layerlimit.sock",
        "exports": {"root": "/var/lib/layerlimit", "enable_remote_snapshot_annotations": "true"},
    }
    removed = [line for line in edit.diff().splitlines()[2:] if line.startswith("-")]
    assert [line.strip("- ") for line in removed] in ([], ["unpack_config = []"])
    again = set_up_containerd(PATH, edit.after, STANZAS, installed=installed)
    assert not again.changed
    assert again.diff() == ""


@pytest.mark.parametrize("name", FILES)
def test_undoing_leaves_what_was_there(name: str) -> None:
    text, installed = FILES[name]
    stanzas = STANZAS if name == "version 1" else ALL
    if stanzas.runtimes and installed == (1, 6):
        stanzas = Stanzas(ALL.snapshotters, ALL.address, ALL.root, default=True)
    edit = set_up_containerd(PATH, text, stanzas, installed=installed)
    undone = undo_containerd(PATH, edit.after, stanzas.snapshotters)
    before, after = tomllib.loads(text or ""), tomllib.loads(undone.after)
    if name == "a node":  # both are what containerd does when nothing is said
        del before["plugins"]["io.containerd.cri.v1.images"]["snapshotter"]
        del before["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    if not text:
        assert after.pop("version") in (2, 3)
    assert after == before
    for line in (text or "").splitlines():
        if "#" in line:
            assert line in undone.after
    assert not undo_containerd(PATH, undone.after, stanzas.snapshotters).changed


def test_the_version_of_a_new_file_is_that_of_containerd() -> None:
    assert set_up(None, STANZAS, (1, 7))["version"] == 2
    assert set_up("", STANZAS, (2, 0))["version"] == 3
    with pytest.raises(NotSupported, match="version"):
        set_up_containerd(PATH, None, STANZAS, installed=None)


def test_containerd_2_can_unpack_into_it_and_still_into_overlayfs() -> None:
    for text in (None, NODE_2, DEBIAN_1_6):
        named = set_up(text, STANZAS, (2, 4))["plugins"][TRANSFER]["unpack_config"]
        assert [(each["snapshotter"], each["differ"]) for each in named] == [
            ("overlayfs", "walking"),
            ("layerlimit", "walking"),
        ]
    theirs = (
        f'version = 3\n[[plugins."{TRANSFER}".unpack_config]]\nplatform = "linux"\nsnapshotter = "stargz"\n'
    )
    named = set_up(theirs, STANZAS, (2, 4))["plugins"][TRANSFER]["unpack_config"]
    assert [each["snapshotter"] for each in named] == ["stargz", "layerlimit"]
    assert TRANSFER not in set_up(DEBIAN_1_6, STANZAS, (1, 6))["plugins"]


@pytest.mark.parametrize("name", ["none, 2.x", "a node", "Debian's on 2.x"])
def test_our_differ_unpacks_for_clients_and_for_pulls(name: str) -> None:
    text, installed = FILES[name]
    for before in (text, set_up_containerd(PATH, text, STANZAS, installed=installed).after):
        edit = set_up_containerd(PATH, before, DIFFER, installed=installed)
        after = tomllib.loads(edit.after)
        assert after["proxy_plugins"]["layerlimit-diff"] == {"type": "diff", "address": STANZAS.address}
        assert after["plugins"][DIFF]["default"] == ["layerlimit-diff", "walking"]
        named = {each["snapshotter"]: each["differ"] for each in after["plugins"][TRANSFER]["unpack_config"]}
        assert named == {"overlayfs": "walking", "layerlimit": "layerlimit-diff"}
        # Without the option it is not taken out again.
        assert not set_up_containerd(PATH, edit.after, STANZAS, installed=installed).changed


def test_a_differ_where_containerd_would_not_start_is_refused() -> None:
    for text, installed in ((DEBIAN_1_6, (1, 6)), (DEBIAN_1_6, None), (None, (1, 6)), (DOCKER_CE, (1, 7))):
        with pytest.raises(NotSupported):
            set_up_containerd(PATH, text, DIFFER, installed=installed)
    plugins = set_up(DEBIAN_1_6, DIFFER, (1, 7))["plugins"]
    assert plugins[DIFF]["default"] == ["layerlimit-diff", "walking"]
    assert TRANSFER not in plugins
    assert set_up("version = 3\n", DIFFER, None)


def test_the_order_of_differs_is_kept() -> None:
    theirs = f'version = 3\n[plugins."{DIFF}"]\ndefault = ["erofs", "walking"] # ours\n'
    edit = set_up_containerd(PATH, theirs, DIFFER, installed=(2, 4))
    after = tomllib.loads(edit.after)
    assert after["plugins"][DIFF]["default"] == ["erofs", "layerlimit-diff", "walking"]
    undone = undo_containerd(PATH, edit.after, DIFFER.snapshotters)
    assert tomllib.loads(undone.after) == tomllib.loads(theirs)


def test_the_differ_stays_with_the_last_snapshotter() -> None:
    edit = set_up_containerd(PATH, NODE_2, ALL, installed=(2, 4))
    undone = undo_containerd(PATH, edit.after, ("layerlimit",))
    after = tomllib.loads(undone.after)
    assert {"layerlimit-diff", "small"} <= set(after["proxy_plugins"])
    assert after["plugins"][DIFF]["default"] == ["layerlimit-diff", "walking"]
    last = tomllib.loads(undo_containerd(PATH, undone.after, ("small",)).after)
    assert "layerlimit-diff" not in last["proxy_plugins"]
    assert DIFF not in last["plugins"]


def test_mapped_owners_are_left_to_mounts_where_they_can_do_it() -> None:
    able = Stanzas(STANZAS.snapshotters, STANZAS.address, STANZAS.root, remap_ids=True)
    for text, installed in ((None, (2, 4)), (DEBIAN_1_6, (2, 4)), (NODE_2, (2, 3))):
        first = set_up_containerd(PATH, text, STANZAS, installed=installed).after
        for before in (text, first):
            proxy = set_up(before, able, installed)["proxy_plugins"]["layerlimit"]
            assert proxy["capabilities"] == ["remap-ids"]
        theirs = first.replace(
            '"snapshot"\naddress = "/run/l', '"snapshot"\ncapabilities = []\naddress = "/run/l'
        )
        assert theirs != first
        assert not set_up_containerd(PATH, theirs, able, installed=installed).changed
    # Before 2.3 its mounts would not reach limited layers; who knows what there is where none is installed.
    for text, older in ((DEBIAN_1_6, (1, 7)), (NODE_2, (2, 2)), (NODE_2, None)):
        assert "capabilities" not in set_up(text, able, older)["proxy_plugins"]["layerlimit"]


def test_cri_uses_it_by_default_or_by_runtime() -> None:
    one = set_up(DEBIAN_1_6, Stanzas(("a",), "/s", "/r", default=True), (1, 6))
    cri = one["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["containerd"]["snapshotter"] == "a"
    assert cri["cni"]["bin_dir"] == "/usr/lib/cni"
    two = set_up(NODE_2, ALL, (2, 4))["plugins"]
    assert two["io.containerd.cri.v1.images"]["snapshotter"] == "layerlimit"
    assert two["io.containerd.cri.v1.images"]["runtime_platforms"] == {
        "layerlimit": {"snapshotter": "layerlimit"},
        "small": {"snapshotter": "small"},
    }
    runtimes = two["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    # As the node's runc: with another cgroup driver than kubelet's, no pod would start.
    assert runtimes["small"] == {**runtimes["runc"], "snapshotter": "small"}
    assert runtimes["small"]["options"] == {"SystemdCgroup": True}


def test_a_runtime_whose_snapshotter_would_be_ignored_is_refused() -> None:
    with pytest.raises(NotSupported, match="no limit"):
        set_up_containerd(PATH, DEBIAN_1_6, ALL, installed=(1, 6))
    with pytest.raises(NotSupported, match="no containerd"):
        set_up_containerd(PATH, DEBIAN_1_6, ALL, installed=None)
    assert set_up(DEBIAN_1_6, ALL, (1, 7))
    with pytest.raises(NotSupported, match="has no 'version'"):
        set_up_containerd(PATH, DOCKER_CE, ALL, installed=(1, 7))


@pytest.mark.parametrize(
    "stanza",
    [
        '[proxy_plugins.layerlimit]\ntype = "snapshot"\naddress = "/run/other.sock"\n',
        '[proxy_plugins.layerlimit]\ntype = "content"\naddress = "/run/layerlimit/layerlimit.sock"\n',
        '[proxy_plugins]\nlayerlimit = "odd"\n',
        '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "stargz"\n',
        '[proxy_plugins.layerlimit-diff]\ntype = "diff"\naddress = "/run/other.sock"\n',
        f'[[plugins."{TRANSFER}".unpack_config]]\nsnapshotter = "small"\ndiffer = "erofs"\n',
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.small]\nsnapshotter = "overlayfs"\n',
        '[plugins."io.containerd.cri.v1.images".runtime_platforms.small]\nsnapshotter = "overlayfs"\n',
    ],
)
def test_what_says_otherwise_is_refused(stanza: str) -> None:
    with pytest.raises(AlreadyExists) as refused:
        set_up_containerd(PATH, f"version = 3\n{stanza}", ALL, installed=(2, 4))
    assert refused.value.code == "setup.conflict"


def test_what_the_user_added_to_our_stanza_stays() -> None:
    edit = set_up_containerd(PATH, DEBIAN_1_6, STANZAS, installed=(1, 7))
    text = edit.after.replace(
        "[proxy_plugins.layerlimit.exports]", 'platform = "linux/amd64"\n\n\\g'
    ).replace("\\g", "[proxy_plugins.layerlimit.exports]")
    assert text != edit.after
    assert not set_up_containerd(PATH, text, STANZAS, installed=(1, 7)).changed


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("version = \n", InvalidArgument),
        ("version = 9\n", NotSupported),
        ('version = "2"\n', NotSupported),
        ("version = true\n[proxy_plugins", InvalidArgument),
    ],
)
def test_a_file_that_is_not_valid_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        set_up_containerd(PATH, text, STANZAS, installed=(2, 4))


@pytest.mark.parametrize("plugins", ["plugins = 5", "proxy_plugins = 5", 'proxy_plugins = ["a"]'])
def test_a_file_of_another_shape_is_refused(plugins: str) -> None:
    with pytest.raises((NotSupported, InvalidArgument)):
        set_up_containerd(PATH, f"version = 3\n{plugins}\n", ALL, installed=(2, 4))


def test_inline_tables_are_not_rewritten() -> None:
    text = 'version = 3\nproxy_plugins = { stargz = { type = "snapshot", address = "/s" } }\n'
    with pytest.raises(NotSupported, match="by hand"):
        set_up_containerd(PATH, text, STANZAS, installed=(2, 4))


def test_tables_in_any_order() -> None:
    text = (
        'version = 3\n[proxy_plugins.a]\ntype = "snapshot"\naddress = "/a"\n[plugins."x.y.z"]\nb = 1\n'
        '[proxy_plugins.c]\ntype = "snapshot"\naddress = "/c"\n[plugins."io.containerd.cri.v1.images"]\n'
        "max_concurrent_downloads = 3\n"
    )
    after = set_up(text, ALL, (2, 4))
    assert set(after["proxy_plugins"]) == {"a", "c", "layerlimit", "small", "layerlimit-diff"}
    assert after["plugins"]["io.containerd.cri.v1.images"]["max_concurrent_downloads"] == 3


def test_text_that_does_not_mean_what_was_meant_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of the library that keeps the text must not reach the file."""
    right = tomlkit.dumps
    monkeypatch.setattr(tomlkit, "dumps", lambda document: right(document).replace("layerlimit.sock", "x"))
    with pytest.raises(NotSupported, match="by hand"):
        set_up_containerd(PATH, NODE_2, STANZAS, installed=(2, 4))
