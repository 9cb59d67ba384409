"""Maps of sparse files: old GNU headers and the pax formats 0.0, 0.1 and 1.0.

A map is a flat array of positions and lengths, (offset, length) after (offset, length): where in the file
the stored bytes go, in order. Source: GNU tar's manual, "Storing Sparse Files".
"""

from __future__ import annotations

from array import array
from typing import TypeAlias

from layerlimit.archive.tarformat import BLOCK, MAX_OFFSET, invalid, parse_decimal, parse_number

Regions: TypeAlias = "array[int]"  # arrays take a type when they run from Python 3.12 on

_HEADER_PAIRS = 4  # in an old GNU header, from byte 386
_EXTENSION_PAIRS = 21  # in each block that continues it


def old_gnu_regions(block: bytes) -> tuple[Regions, int, bool]:
    """The map in an old GNU header: regions, the file's real size, whether extension blocks follow."""
    regions = array("q")
    _add_pairs(regions, block, 386, _HEADER_PAIRS)
    return regions, _offset(block[483:495]), block[482] != 0


def extend_old_gnu(regions: Regions, block: bytes) -> bool:
    """Add an extension block's pairs to ``regions``; True when another block follows."""
    _add_pairs(regions, block, 0, _EXTENSION_PAIRS)
    return block[504] != 0


def pax_regions(text: bytes) -> Regions:
    """The map of pax formats 0.0 and 0.1: decimal numbers joined by commas."""
    numbers = text.split(b",") if text else []
    if len(numbers) % 2:
        raise invalid("a sparse map has an offset without a length")
    return array("q", [parse_decimal(number, "GNU.sparse.map") for number in numbers])


class StoredMap:
    """The map of pax format 1.0, which precedes the data in whole blocks: feed it until it is complete."""

    def __init__(self, *, most: int) -> None:
        self.regions = array("q")
        self._most = most
        self._rest = b""
        self._wanted: int | None = None  # numbers that the first line promises

    def feed(self, block: bytes) -> bool:
        """Take the next block; True when the map is complete, and the data starts after this block."""
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if self._wanted is None:
                count = parse_decimal(line, "sparse map")
                if count > self._most:
                    raise invalid(f"a sparse map has {count} regions", code="archive.limit")
                self._wanted = 2 * count
            elif len(self.regions) < self._wanted:
                self.regions.append(parse_decimal(line, "sparse map"))
        if len(self._rest) > BLOCK:  # no number is as long, only padding is
            self._rest = b""
            if self._wanted is None or len(self.regions) < self._wanted:
                raise invalid("a sparse map is not made of numbers")
        return self._wanted is not None and len(self.regions) >= self._wanted


def check_regions(regions: Regions, real_size: int, stored: int) -> None:
    """Raise ``InvalidArgument`` unless the regions ascend within the file and hold the stored bytes."""
    position = total = 0
    for index in range(0, len(regions), 2):
        offset, length = regions[index], regions[index + 1]
        if offset < position or length > real_size - offset:
            raise invalid("the regions of a sparse file overlap or exceed its size")
        position = offset + length
        total += length
    if total != stored:
        raise invalid(f"a sparse file stores {stored} bytes, its map says {total}")


def _add_pairs(regions: Regions, block: bytes, start: int, count: int) -> None:
    for position in range(start, start + 24 * count, 24):
        if block[position + 12] == 0:  # an empty length ends the list
            return
        regions.append(_offset(block[position : position + 12]))
        regions.append(_offset(block[position + 12 : position + 24]))


def _offset(field: bytes) -> int:
    value = parse_number(field, "sparse map")
    if not 0 <= value <= MAX_OFFSET:
        raise invalid(f"a sparse map holds the impossible number {value}")
    return value
