"""Mutated archives: whatever they hold, they are read or refused, in bounded time and memory.

    python -m tests.fuzz.fuzz_reader [--seconds 60] [--seed N] [--apply]

Mutates the archives of ``corpus/`` and seals most of the changed headers again, so that damage gets past
their checksums. ``--apply`` extracts them too (as root, in a world of its own; in every form) and looks at
what must not change. An input that fails is written to ``/tmp/layerlimit-fuzz-<seed>-<number>.tar``; add it
to the corpus with the fix.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from layerlimit.archive import Form, Limits, apply
from layerlimit.archive.contain import clean
from layerlimit.archive.reader import Reader
from layerlimit.errors import Error
from tests.archive.archives import seal
from tests.archive.world import World

CORPUS = Path(__file__).with_name("corpus")
BLOCK = 512
LIMITS = Limits(entries=10_000, pax_bytes=1 << 16, sparse_regions=10_000, expanded_bytes=1 << 40)
#: The seconds that one input of a few kilobytes may take, and the mebibytes that all may add.
PATIENCE = 20
MEMORY = 64

_INTERESTING = [
    b"\0" * 12, b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80" + bytes(11), b"-1", b" ",
    b"00000001000\0", b"99999999999\0", b"../", b"/", b".wh.", b".wh..wh..opq", b".wh..wh.plnk/1", b"\n",
    b"=", b"1 ", b"9223372036854775807", b"18446744073709551616", b"GNU.sparse.major=1\n", b"path=",
]  # fmt: skip
_TYPES = b"01234567xgLKSVMDNX\0"


def corpus() -> list[bytes]:
    """The archives to start from."""
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


def mutate(some: random.Random, archives: Sequence[bytes]) -> bytes:
    """One of the archives, changed in a few places."""
    data = bytearray(some.choice(archives))
    for _ in range(some.choice([1, 1, 2, 3, 8])):
        if data:
            some.choice(_MUTATIONS)(some, data, archives)
    if some.random() < 0.9:
        for start in range(0, len(data) - BLOCK + 1, BLOCK):
            if data[start + 257 : start + 262] == b"ustar":
                data[start : start + BLOCK] = seal(data[start : start + BLOCK])
    return bytes(data)


def _flip(some: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[some.randrange(len(data))] = some.randrange(256)


def _insert_interesting(some: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, value = some.randrange(len(data)), some.choice(_INTERESTING)
    data[at : at + len(value)] = value


def _change_field(some: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    block = some.randrange(max(1, len(data) // BLOCK)) * BLOCK
    offset, width = some.choice(
        [(0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (157, 100), (345, 155), (386, 24)]
    )
    value = some.choice(_INTERESTING)[:width]
    data[block + offset : block + offset + len(value)] = value


def _change_type(some: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = some.randrange(max(1, len(data) // BLOCK)) * BLOCK + 156
    data[at : at + 1] = bytes([some.choice(_TYPES)])


def _move_blocks(some: random.Random, data: bytearray, archives: Sequence[bytes]) -> None:
    source = some.choice([bytes(data), some.choice(archives)])
    start = some.randrange(max(1, len(source) // BLOCK)) * BLOCK
    stop = start + some.randrange(1, 5) * BLOCK
    at = some.randrange(max(1, len(data) // BLOCK)) * BLOCK
    data[at:at] = source[start:stop]


def _drop_blocks(some: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = some.randrange(max(1, len(data) // BLOCK)) * BLOCK
    del data[start : start + some.randrange(1, 4) * BLOCK]


def _truncate(some: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[some.randrange(len(data)) :]


_MUTATIONS: list[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = [
    _flip, _flip, _insert_interesting, _change_field, _change_type, _move_blocks, _drop_blocks, _truncate
]  # fmt: skip


def read(data: bytes) -> int:
    """Read all entries of ``data`` with their content; how many, however it ends."""
    position = 0

    def source() -> memoryview:
        nonlocal position
        chunk = memoryview(data)[position : position + 4 * BLOCK]
        position += 4 * BLOCK
        return chunk

    reader = Reader(source, limits=LIMITS)
    try:
        while reader.advance():
            clean(reader.name)
            taken = sum(len(piece) for piece in iter(reader.take, b""))
            assert taken <= len(data)
            assert taken <= reader.size or reader.regions is not None
        reader.drain()
    except Error:
        pass
    assert reader.entries <= len(data) // BLOCK
    return reader.entries


def extract(world: World, archives: Sequence[bytes]) -> None:
    """Extract all ``archives`` over one another; every form has its directory below the layer."""

    def work() -> None:
        for data in archives:
            _patient()
            for form in Form:
                root = Path("/layer", form.value)
                root.mkdir(exist_ok=True)
                with tempfile.TemporaryFile(dir="/layer") as stream:
                    stream.write(data)
                    stream.seek(0)
                    try:
                        apply(stream, root, form=form, limits=LIMITS, durable=False)
                    except Error:
                        pass

    world.run(work, mount="size=64m")
    assert world.intact


def _patient() -> None:
    signal.alarm(PATIENCE)  # its default action ends the process


def main() -> None:
    options = argparse.ArgumentParser(description="Fuzz the reader of layer archives.")
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--seed", type=int, default=int(time.time()))
    options.add_argument("--apply", action="store_true", help="extract the archives as well (root)")
    given = options.parse_args()
    some, archives = random.Random(given.seed), corpus()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    deadline, number, found = time.monotonic() + given.seconds, 0, 0
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory) / "world")
        while time.monotonic() < deadline:
            batch = [mutate(some, archives) for _ in range(50 if given.apply else 1)]
            number += len(batch)
            try:
                for data in batch:
                    _patient()
                    found += read(data)
                if given.apply:
                    extract(world, batch)
            except BaseException:
                for index, data in enumerate(batch):
                    Path(f"/tmp/layerlimit-fuzz-{given.seed}-{number}-{index}.tar").write_bytes(data)
                print(f"seed {given.seed}, input {number}", file=sys.stderr)
                raise
    signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{number} inputs, {found} entries, {grown:.0f} MiB more memory, seed {given.seed}")
    if grown > MEMORY:
        sys.exit("too much memory")


if __name__ == "__main__":
    main()
