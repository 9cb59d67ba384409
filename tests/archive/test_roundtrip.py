"""Random trees out as tars and back in, alone and through other people's programs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, event, given, settings

from layerlimit.archive import Form, write
from tests.archive import peers, trees

_SETTINGS = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
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


@pytest.mark.lane("root")
@pytest.mark.parametrize("extract", _READERS)
@pytest.mark.parametrize("exact", [False, True], ids=["as engines write", "everything"])
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
