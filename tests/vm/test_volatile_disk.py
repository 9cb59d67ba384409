"""The disk that loses what was not flushed, driven without a machine, and the verdict about what is left."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.verdict import expected, faults
from tests.vm.volatile_disk import BLOCK, EVENTS, VolatileDisk

READ, WRITE, FLUSH = 0, 1, 3
SIZE = EVENTS + 16 * BLOCK


class Client:
    """The other side of the disk's protocol, as qemu speaks it."""

    def __init__(self, disk: VolatileDisk) -> None:
        self.socket = disk.plug()
        self.socket.settimeout(10.0)
        self.receive(18)
        self.socket.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 7, 0))
        self.receive(20 + 12 + 20)

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more
            data += more
        return data

    def do(self, *requests: tuple[int, int, bytes]) -> bytes:
        """Sends requests in one go and waits for their answers; a read's payload says how much to read."""
        wire = b""
        for kind, offset, data in requests:
            wire += struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, len(data))
            wire += data if kind == WRITE else b""
        self.socket.sendall(wire)
        read = sum(len(data) for kind, _, data in requests if kind == READ)
        return self.receive(16 * len(requests) + read)[16 * len(requests) :]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VolatileDisk]:
    base = tmp_path / "base"
    base.write_bytes(bytes(SIZE))
    with VolatileDisk(tmp_path, base) as disk:
        yield disk


def outcomes(disk: VolatileDisk, target: Path, *blocks: int) -> set[bytes]:
    """What may be in some blocks (the first byte of each) after a cut now."""
    found = set()
    for seed in range(64):
        disk.cut(len(disk), random.Random(seed), target)
        data = target.read_bytes()
        found.add(bytes(data[block * BLOCK] for block in blocks))
    return found


def test_what_may_be_lost_is_known(disk: VolatileDisk, tmp_path: Path) -> None:
    client = Client(disk)
    for offset, size in ((0, 1), (2, 2), (5, 1)):
        client.do((WRITE, offset * BLOCK, b"x" * size * BLOCK))
    client.do((FLUSH, 0, b""))
    client.do((WRITE, 7 * BLOCK, b"y" * BLOCK))
    assert disk.wait_for_unflushed(blocks=1, timeout=0.0)
    assert not disk.wait_for_unflushed(blocks=2, timeout=0.0)
    assert disk.risky(blocks=3) == [2, 3]
    assert [disk.cut(at, None, tmp_path / "target") for at in range(6)] == [0, 1, 3, 4, 0, 1]
    client.socket.close()


def test_only_what_a_later_flush_covers_is_sure(disk: VolatileDisk, tmp_path: Path) -> None:
    target = tmp_path / "cut"
    client = Client(disk)
    client.do((WRITE, 0, b"a" * 2 * BLOCK))
    client.do((WRITE, BLOCK, b"b" * BLOCK))
    assert client.do((READ, BLOCK, bytes(4))) == b"bbbb"
    # Torn between blocks, and each version of the second one.
    assert outcomes(disk, target, 0, 1) == {bytes((x, y)) for x in b"\0a" for y in b"\0ab"}
    # A flush that was sent before the write was answered covers what came before them, and not the write.
    client.do((WRITE, 0, b"c" * BLOCK), (FLUSH, 0, b""))
    assert outcomes(disk, target, 0, 1) == {b"ab", b"cb"}
    client.do((FLUSH, 0, b""))
    assert outcomes(disk, target, 0, 1) == {b"cb"}
    # Without a choice nothing stays; a piece of a block leaves the rest of it.
    client.do((WRITE, 100, b"d" * 10))
    disk.cut(len(disk), None, target)
    assert target.read_bytes()[:BLOCK] == b"c" * BLOCK
    client.do((FLUSH, 0, b""))
    disk.cut(len(disk), None, target)
    assert target.read_bytes()[:BLOCK] == b"c" * 100 + b"d" * 10 + b"c" * (BLOCK - 110)
    client.socket.close()


def test_events_stand_in_order_with_writes(disk: VolatileDisk, tmp_path: Path) -> None:
    client = Client(disk)
    client.do((WRITE, 0, b"a" * BLOCK))
    client.do((WRITE, SIZE - EVENTS, json.dumps({"end": "commit"}).encode().ljust(BLOCK, b"\0")))
    client.do((FLUSH, 0, b""))
    client.socket.close()
    disk.unplug()
    (position,) = disk.positions("end", "commit")
    assert (position, len(disk), list(disk.events(position))) == (2, 3, [{"end": "commit"}])
    assert (list(disk.events(1)), disk.positions("end", "rm")) == ([], [])
    disk.cut(position, None, tmp_path / "cut")
    assert (tmp_path / "cut").read_bytes()[:1] == b"\0"


def state(**more: Any) -> dict[str, Any]:
    ours = {"kind": "active", "parent": "", "limit": 100, "labels": {}, "content": None, "fresh": True}
    return ours | more


COMMITTED = state(kind="committed", content={"file": "f 644 1 aa"}, fresh=False)
EVENTS_OF_A_COMMIT: list[dict[str, Any]] = [
    {"begin": 1, "changes": {"one": state()}},
    {"end": "create"},
    {"begin": 2, "changes": {"one": None, "two": COMMITTED}},
]


def report(**entries: dict[str, Any]) -> dict[str, Any]:
    seen = {"promised": 100, "available": 100, "fitted": 100, "content": {}}
    empty: dict[str, Any] = dict.fromkeys(("opened", "gc", "found", "repair", "after", "left"), ())
    return empty | {"entries": {name: {**seen, **entry} for name, entry in entries.items()}}


def test_an_operation_that_had_not_returned_has_happened_or_not() -> None:
    assert expected(EVENTS_OF_A_COMMIT) == [{"one": state()}, {"two": COMMITTED}]
    for left in (report(one=state()), report(two=COMMITTED)):
        assert faults(EVENTS_OF_A_COMMIT, left) == []
    for left in (report(), report(one=state(), two=COMMITTED)):
        assert len(faults(EVENTS_OF_A_COMMIT, left)) == 1
    assert len(faults([*EVENTS_OF_A_COMMIT, {"end": "commit"}], report(one=state()))) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"content": {"file": "f 644 1 bb"}}, "'f 644 1 bb', not 'f 644 1 aa'"),
        ({"content": {"file": "f 644 1 aa", "more": "d 755"}}, "more is 'd 755', not None"),
        ({"limit": None, "promised": 0}, "limit is None"),
        ({"promised": 99}, "the account has 99"),
        ({"labels": {"a": "b"}}, "labels"),
        ({"failure": "Corrupt"}, "cannot be mounted: Corrupt"),
    ],
)
def test_a_committed_layer_that_changed_is_a_fault(change: dict[str, Any], said: str) -> None:
    (fault,) = faults([*EVENTS_OF_A_COMMIT, {"end": "commit"}], report(two={**COMMITTED, **change}))
    assert said in fault


@pytest.mark.parametrize("change", [{"available": 99}, {"fitted": 103}, {"fitted": None}])
def test_a_limit_that_does_not_hold_is_a_fault(change: dict[str, Any]) -> None:
    assert len(faults(EVENTS_OF_A_COMMIT[:2], report(one={**state(), **change}))) == 1


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({"found": [["image.unclean", "", False]]}, 0),
        ({"found": [["image.missing", "", False]]}, 1),
        ({"repair": [["image.unclean", "", True]]}, 0),
        ({"repair": [["image.unclean", "", False]]}, 1),
        ({"after": [["image.unclean", "", False]]}, 1),
        ({"left": ["trash/x"]}, 1),
        ({"gc": ["kept"]}, 1),
        ({"failure": "no database"}, 1),
    ],
)
def test_what_check_and_gc_leave_is_a_fault(more: dict[str, Any], count: int) -> None:
    assert len(faults(EVENTS_OF_A_COMMIT[:2], report(one=state()) | more)) == count
