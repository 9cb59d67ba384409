"""How data gets to stdout: JSON, aligned columns, names that are safe to print."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final

import msgspec

from layerlimit.errors import Error, from_os_error

# C0 and C1 controls: a name must neither forge lines nor talk to the terminal.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PAGE: Final = 512  # pieces joined into one write
_PIECE: Final = 1 << 20  # bytes of a stream at a time


class ReaderGone(Exception):
    """Who read our stdout closed it; that is no error of ours. Not an OSError: click would exit on it."""


def encode(value: object, *, indent: int = 0) -> bytes:
    """``value`` as JSON. Bytes of names that are not UTF-8 come as ``\\udcXX``, as Python writes them."""
    try:
        raw = msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent or None).encode("ascii")
    return msgspec.json.format(raw, indent=indent) if indent else raw


def write(*pieces: bytes) -> None:
    """Write to stdout at once, so that an error is met here and not at the interpreter's end."""
    if sys.stdout is None:
        raise Error("stdout is closed", hint="give it a place to write to", code="stdout.closed")
    out = sys.stdout.buffer
    try:
        for start in range(0, len(pieces), _PAGE):
            out.write(b"".join(pieces[start : start + _PAGE]))
        out.flush()
    except OSError as error:
        abandon_stdout()
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        raise from_os_error(error, "write to stdout") from error


def abandon_stdout() -> None:
    """What stdout still buffers goes nowhere: Python would fail on it once more when it ends."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def write_error(line: str) -> None:
    """A line on stderr. There is nowhere to say it when that does not work."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        sys.stderr.buffer.write(line.encode(errors="surrogateescape") + b"\n")
        sys.stderr.flush()


def printable(name: str) -> str:
    """A file name for a line of text: control characters as ``\\xNN``, all else as it is."""
    if name.isprintable():  # nearly every one is, and this is quick to see
        return name
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", name)


def columns(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()
) -> Iterator[str]:
    """Lines of aligned columns; those with the indexes ``right`` are aligned to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def pairs(entries: Iterable[tuple[str, Any]]) -> list[str]:
    """Lines ``Key: value`` with the values below each other."""
    shown = [(f"{key}:", str(value)) for key, value in entries]
    width = max((len(key) for key, _ in shown), default=0)
    return [f"{key.ljust(width)} {value}" for key, value in shown]


def copy_to_stdout(stream: BinaryIO) -> None:
    """Write a binary stream to stdout, to its end."""
    while piece := stream.read(_PIECE):
        write(piece)
