"""Sizes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlimit.errors import InvalidArgument
from layerlimit.limit import MIB, Limit, format_size, parse_size
from layerlimit.limit.protocol import MAX_BYTES


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1024", 1024),
        ("10g", 10 << 30),
        ("10G", 10 << 30),
        ("10GB", 10 << 30),
        ("10GiB", 10 << 30),
        ("10 gib", 10 << 30),
        (" 10g ", 10 << 30),
        ("512m", 512 << 20),
        ("1.5k", 1536),
        ("0.5MiB", 1 << 19),
        ("7b", 7),
        ("2T", 2 << 40),
        ("1p", 1 << 50),
        ("0.1k", 102),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "+1",
        "1e3",
        "0x10",
        "10x",
        "10 g b",
        "g",
        "1.g",
        ".5g",
        "1,5g",
        "1 000",
        "١",
        "1gg",
        "nan",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_size(text)
    assert caught.value.code == "size.invalid"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 << 20, "256 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 40, "1 TiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, MAX_BYTES))
def test_what_is_printed_is_read_back_nearly(size: int) -> None:
    again = parse_size(format_size(size))
    assert abs(again - size) <= max(size * 0.06, 0)


@given(st.integers(0, MAX_BYTES))
def test_digits_are_bytes(size: int) -> None:
    assert parse_size(str(size)) == size


@pytest.mark.parametrize("size", [0, -1, MAX_BYTES + 1, 1 << 80, 1.5, "16m", None, True])
def test_limits_out_of_range(size: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Limit(size)  # type: ignore[arg-type]
    assert caught.value.code == "limit.range"


@pytest.mark.parametrize("inodes", [0, -1, 1 << 31, 1.5, "9", False])
def test_inode_limits_out_of_range(inodes: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Limit(MIB, inodes=inodes)  # type: ignore[arg-type]
    assert caught.value.code == "limit.range"


def test_limits_are_values() -> None:
    assert Limit(16 * MIB) == Limit(16 * MIB, None)
    assert Limit(16 * MIB) != Limit(16 * MIB, 100)
    assert len({Limit(1), Limit(1), Limit(MAX_BYTES)}) == 2
