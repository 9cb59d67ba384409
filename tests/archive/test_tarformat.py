"""Fields of the tar format, there and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from layerlimit.archive import tarformat as tar
from layerlimit.errors import InvalidArgument


@given(st.binary(min_size=512, max_size=512))
def test_checksums_are_sums(block: bytes) -> None:
    others = block[:148] + block[156:]
    assert tar.checksum(block) == sum(others) + 8 * ord(" ")
    assert tar.signed_checksum(block) == sum(byte - 256 * (byte > 127) for byte in others) + 8 * ord(" ")


def test_largest_checksum() -> None:
    assert tar.checksum(b"\xff" * 512) == 504 * 255 + 8 * 32


@given(st.integers(0, tar.MAX_OCTAL_11), st.integers(8, 12))
def test_octal_fields(value: int, width: int) -> None:
    if value < 8 ** (width - 1):
        field = tar.format_octal(value, width)
        assert len(field) == width
        assert tar.parse_number(field, "size") == value


@given(st.integers(-(2**62), 2**62))
def test_base_256_fields(value: int) -> None:
    field = value.to_bytes(12, "big", signed=True)
    field = (b"\xff" if value < 0 else b"\x80") + field[1:]
    assert tar.parse_number(field, "size") == value


@given(st.binary(max_size=24))
def test_number_fields_are_numbers_or_refused(field: bytes) -> None:
    try:
        value = tar.parse_number(field, "size")
    except InvalidArgument:
        return
    assert not field.strip(b" \0") or field[0] & 0x80 or value == int(field.strip(b" \0").split(b"\0")[0], 8)


_KEYS = st.binary(min_size=1, max_size=30).filter(lambda key: b"=" not in key)


@given(st.lists(st.tuples(_KEYS, st.binary(max_size=200)), max_size=5))
def test_pax_records(records: list[tuple[bytes, bytes]]) -> None:
    content = b"".join(tar.pax_record(key, value) for key, value in records)
    assert list(tar.pax_records(content)) == records


def test_pax_records_count_their_own_length() -> None:
    for length in range(1, 1200):  # over all places where the count gets a digit more
        record = tar.pax_record(b"k", b"v" * length)
        assert int(record.split(b" ")[0]) == len(record)


@given(st.integers(-(2**70), 2**70))
def test_times(nanoseconds: int) -> None:
    sign, (seconds, rest) = "-" * (nanoseconds < 0), divmod(abs(nanoseconds), 10**9)
    text = f"{sign}{seconds}.{rest:09}".encode()
    assert tar.parse_time(text, "mtime") == nanoseconds


@given(st.binary(max_size=500))
def test_printable_names_are_one_short_line(name: bytes) -> None:
    text = tar.printable(name)
    assert text.isprintable()
    assert len(text) < 2000


def test_printable_keeps_readable_names() -> None:
    assert tar.printable("usr/bin/ü".encode()) == "'usr/bin/ü'"
    assert tar.printable(b"a\nb\xff") == r"'a\nb\\xff'"
