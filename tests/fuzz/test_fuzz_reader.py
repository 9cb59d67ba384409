"""A short run of the fuzzer with the same inputs each time; ``python -m tests.fuzz.fuzz_reader`` goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.archive.archives import header, padded, pax
from tests.archive.world import World
from tests.fuzz.fuzz_reader import corpus, extract, mutate, read


def test_corpus_is_read() -> None:
    archives = corpus()
    assert len(archives) >= 10
    assert all(read(data) >= 1 for data in archives)


def test_mutated_archives_are_read_or_refused() -> None:
    some, archives = random.Random(1), corpus()
    entries = [read(mutate(some, archives)) for _ in range(2000)]
    # Most mutations must get past the first header, or this tests nothing but checksums.
    assert sum(count >= 2 for count in entries) > len(entries) / 3


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=600).map(padded),
            st.builds(
                header,
                st.binary(max_size=100),
                kind=st.sampled_from(
                    [b"0", b"1", b"2", b"3", b"5", b"7", b"S", b"L", b"K", b"x", b"\0", b"?"]
                ),
                size=st.integers(-(2**70), 2**70) | st.integers(0, 1500),
                mtime=st.integers(-(2**70), 2**70),
                link=st.binary(max_size=100),
            ),
            st.lists(
                st.tuples(
                    st.sampled_from(
                        [
                            b"path",
                            b"size",
                            b"mtime",
                            b"uid",
                            b"SCHILY.xattr.a",
                            b"GNU.sparse.map",
                            b"GNU.sparse.major",
                            b"GNU.sparse.minor",
                            b"GNU.sparse.realsize",
                            b"GNU.sparse.offset",
                        ]
                    ),
                    st.sampled_from([b"0", b"1", b"", b"-1", b"0,1", b"1e3"]) | st.binary(max_size=30),
                ),
                max_size=5,
            ).map(pax),
        ),
        max_size=12,
    )
)
def test_made_up_blocks_are_read_or_refused(blocks: list[bytes]) -> None:
    read(b"".join(blocks))


@pytest.mark.lane("root")
def test_mutated_archives_stay_inside(tmp_path: Path) -> None:
    some, archives = random.Random(2), corpus()
    world = World(tmp_path / "world")
    for _ in range(4):
        extract(world, [mutate(some, archives) for _ in range(40)])
