"""Random trees out as tars and back in, alone and through other people's programs."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, assume, event, given, settings

from layerlimit.archive import Form, native, write
from layerlimit.archive.apply import apply
from tests.archive import layers, peers, trees

_SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@contextmanager
def _scratch() -> Iterator[tuple[Path, Path, Path]]:
    """A directory with a tree to come, one to extract into, and the path of an archive."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "in").mkdir()
        (base / "out").mkdir()
        yield base / "in", base / "out", base / "layer.tar"


def _note(seen: Counter[str], found: set[str]) -> None:
    for feature in found:
        event(feature)
    seen.update(found)


EVERY_FEATURE = {
    "name over 100 bytes",
    "component over 100 bytes",
    "name that is not UTF-8",
    "capability",
    "owner over 2097151",
    "fraction of a second",
    "set-id file",
    "symlink",
    "fifo",
    "device",
    "hard link across directories",
    "decomposed name",
}

_READERS = [
    pytest.param(peers.gnu_extract, marks=pytest.mark.lane("gnu_tar"), id="gnu_tar"),
    pytest.param(peers.bsd_extract, marks=pytest.mark.lane("bsdtar"), id="bsdtar"),
]


exactness = pytest.mark.parametrize("exact", [False, True], ids=["as engines write", "everything"])


@pytest.mark.lane("root")
@pytest.mark.parametrize(("form", "core"), [*((form, "native") for form in Form), (Form.OVERLAY, "python")])
@exactness
def test_trees_come_back_as_they_were(
    form: Form, core: str, monkeypatch: pytest.MonkeyPatch, *, exact: bool
) -> None:
    seen: Counter[str] = Counter()
    if core == "python":
        monkeypatch.setattr(native, "core", None)

    @_SETTINGS
    @given(trees.trees(holes=exact))
    def check(tree: trees.Tree) -> None:
        _note(seen, trees.features(tree))
        with _scratch() as (source, target, archive):
            trees.make(source, tree)
            with archive.open("wb") as out:
                written = write(source, out, form=form, times="ns" if exact else "s", sparse=exact)
            with archive.open("rb") as stream:
                applied = apply(stream, target, form=form, durable=False)
            expected = trees.scan(source, seconds=not exact, extents=exact)
            assert trees.scan(target, extents=exact) == expected
            assert applied.diff_id == written.diff_id
            assert applied.entries == written.entries == len(tree)

    check()
    assert seen.keys() >= EVERY_FEATURE | ({"size over 8 GiB"} if exact else set())


@pytest.mark.lane("root")
@pytest.mark.parametrize("extract", _READERS)
@exactness
def test_others_extract_what_we_write(extract: peers.Extract, *, exact: bool) -> None:
    seen: Counter[str] = Counter()

    @_SETTINGS
    @given(trees.trees(holes=exact))
    def check(tree: trees.Tree) -> None:
        _note(seen, trees.features(tree))
        # libarchive composes what a pax header gives as decomposed letters.
        assume(extract is not peers.bsd_extract or "decomposed name" not in trees.features(tree))
        with _scratch() as (source, target, archive):
            trees.make(source, tree)
            with archive.open("wb") as out:
                write(source, out, form=Form.FLAT, times="ns" if exact else "s", sparse=exact)
            extract(archive, target)
            expected = trees.scan(source, seconds=not exact, extents=exact)
            assert trees.scan(target, extents=exact) == expected

    check()
    assert seen.keys() >= EVERY_FEATURE | ({"size over 8 GiB"} if exact else set())


_WRITERS = [
    pytest.param(peers.gnu_create, marks=pytest.mark.lane("gnu_tar"), id="gnu_tar"),
    pytest.param(peers.bsd_create, marks=pytest.mark.lane("bsdtar"), id="bsdtar"),
]


@pytest.mark.lane("root")
@pytest.mark.parametrize("create", _WRITERS)
def test_we_extract_what_others_write(create: peers.Create) -> None:
    seen: Counter[str] = Counter()

    @_SETTINGS
    @given(trees.trees(holes=True))
    def check(tree: trees.Tree) -> None:
        _note(seen, trees.features(tree))
        with _scratch() as (source, target, archive):
            trees.make(source, tree)
            create(source, archive)
            with archive.open("rb") as stream:
                apply(stream, target, form=Form.FLAT, durable=False)
            found, expected = trees.scan(target, extents=True), trees.scan(source, extents=True)
            assert _special_files_apart(found) == _special_files_apart(expected)

    check()
    assert seen.keys() >= EVERY_FEATURE | {"size over 8 GiB"}


def _special_files_apart(seen: dict[bytes, trees.Seen]) -> dict[bytes, trees.Seen]:
    """GNU tar and bsdtar write each name of a FIFO or device as a file of its own."""
    return {path: replace(at, links=()) if at.kind in "pcb" else at for path, at in seen.items()}


EVERY_DEED = {
    "opaque over a directory with content",
    "whiteout and the same name again",
    "a directory in place of a file",
    "removed a file",
    "removed a tree",
    "linked a file",
    "renamed a file",
    "changed a directory's mode",
}


@pytest.mark.lane("root", "overlay")
def test_layers_mean_the_same_in_every_form() -> None:
    """overlay → tar → {overlay, AUFS form, a whole tree}: the same view, and the same tar again."""
    seen: Counter[str] = Counter()

    @_SETTINGS
    @given(trees.trees(full=True), layers.deeds)
    def check(tree: trees.Tree, deeds: list[layers.Deed]) -> None:
        with _scratch() as (lower, target, archive):
            base = archive.parent
            trees.make(lower, tree)
            with layers.overlay(base, [lower]) as (merged, upper):
                _note(seen, layers.perform(merged, deeds))
                expected = trees.scan(merged)
                original = _export(upper, archive, Form.OVERLAY)
            for form in (Form.OVERLAY, Form.AUFS):
                branch = target / form.value
                branch.mkdir()
                _import(archive, branch, form)
                assert _export(branch, base / "again.tar", form) == original
            with layers.overlay(target, [target / "overlay", lower]) as (view, _):
                assert trees.scan(view) == expected
            peers.run("cp", "-a", lower, target / "flat")
            _import(archive, target / "flat", Form.FLAT)
            found = trees.scan(target / "flat")
            assert _without_directory_xattrs(found) == _without_directory_xattrs(expected)

    check()
    assert seen.keys() >= EVERY_DEED


def _without_directory_xattrs(seen: dict[bytes, trees.Seen]) -> dict[bytes, trees.Seen]:
    """A directory entry over a directory keeps the attributes that it does not name."""
    return {path: replace(at, xattrs=()) if at.kind == "d" else at for path, at in seen.items()}


def _export(upper: Path, archive: Path, form: Form, *, times: Literal["s", "ns"] = "ns") -> bytes:
    with archive.open("wb") as out:
        write(upper, out, form=form, times=times)
    return archive.read_bytes()


def _import(archive: Path, root: Path, form: Form) -> None:
    with archive.open("rb") as stream:
        apply(stream, root, form=form, durable=False)


_UMOCI = settings(_SETTINGS, max_examples=50)


@pytest.mark.lane("root", "overlay", "umoci")
def test_umoci_unpacks_our_layers() -> None:
    seen: Counter[str] = Counter()

    @_UMOCI
    @given(trees.trees(full=True), layers.deeds)
    def check(tree: trees.Tree, deeds: list[layers.Deed]) -> None:
        with _scratch() as (lower, target, archive):
            trees.make(lower, tree)
            with layers.overlay(archive.parent, [lower]) as (merged, upper):
                _note(seen, layers.perform(merged, deeds) | trees.features(tree))
                tars = [_export(lower, archive, Form.FLAT, times="s")]
                tars.append(_export(upper, archive, Form.OVERLAY, times="s"))
                expected = trees.scan(merged, seconds=True)
            layout = peers.oci_layout(target / "layout", tars)
            assert trees.scan(peers.umoci_unpack(layout, target / "bundle")) == expected

    check()
    assert seen.keys() >= EVERY_DEED | EVERY_FEATURE


@pytest.mark.lane("root", "umoci")
def test_we_apply_umocis_layers() -> None:
    seen: Counter[str] = Counter()

    @_UMOCI
    @given(trees.trees(full=True), layers.deeds)
    def check(tree: trees.Tree, deeds: list[layers.Deed]) -> None:
        with _scratch() as (lower, target, archive):
            trees.make(lower, tree)
            layout = peers.oci_layout(target / "layout", [_export(lower, archive, Form.FLAT, times="s")])
            root = peers.umoci_unpack(layout, target / "bundle")
            peers.run("cp", "-a", root, target / "flat")
            done = layers.perform(root, deeds)
            # umoci writes whiteouts below what has become a file.
            assume(not any(at.kind == "-" and tree[path].kind == "d" for path, at in _known(root, tree)))
            _note(seen, done | trees.features(tree))
            archive.write_bytes(peers.umoci_repack(layout, target / "bundle"))
            _import(archive, target / "flat", Form.FLAT)
            assert _as_umoci_tells(trees.scan(target / "flat")) == _as_umoci_tells(trees.scan(root))

    check()
    assert seen.keys() >= EVERY_DEED | EVERY_FEATURE


def _known(root: Path, tree: trees.Tree) -> list[tuple[bytes, trees.Seen]]:
    return [(path, at) for path, at in trees.scan(root).items() if path in tree]


def _as_umoci_tells(seen: dict[bytes, trees.Seen]) -> dict[bytes, trees.Seen]:
    """Times to the nearest second, none of directories in which only something else has changed, no links
    to what was there before."""
    half = trees.SECOND // 2
    told = {}
    for path, at in _without_directory_xattrs(seen).items():
        time = 0 if at.kind == "d" else (at.mtime + half) // trees.SECOND
        told[path] = replace(at, mtime=time, links=())
    return told


def test_owners_are_those_that_are_said(tmp_path: Path) -> None:
    upper, tar = tmp_path / "upper", tmp_path / "tar"
    (upper / "dir").mkdir(parents=True)
    os.setxattr(upper / "dir", "trusted.overlay.opaque", b"y")
    (upper / "dir/file").touch()
    (upper / "dir/link").symlink_to("file")
    with (upper / "holes").open("wb") as holes:
        holes.truncate(1 << 20)
    for sparse in (False, True):
        with tar.open("wb") as out:
            write(upper, out, form=Form.OVERLAY, sparse=sparse, owners=lambda uid, gid: (uid + 3, gid + 5))
        with tarfile.open(tar) as opened:
            members = opened.getmembers()
        assert [(member.uid, member.gid) for member in members] == [(os.getuid() + 3, os.getgid() + 5)] * 5
