"""Where a tar comes from: a file, or stdin for ``-``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import BinaryIO

from layerlimit.errors import Error, InvalidArgument, from_os_error


@contextlib.contextmanager
def open_tar(source: str) -> Iterator[BinaryIO]:
    """The stream of ``source``; InvalidArgument for a terminal or a directory, NotFound for no file."""
    if source == "-":
        yield stdin()
        return
    with contextlib.ExitStack() as opened:
        yield _open(source, opened)


def _open(source: str, opened: contextlib.ExitStack) -> BinaryIO:
    try:
        return opened.enter_context(open(source, "rb"))
    except IsADirectoryError as error:
        raise InvalidArgument(
            f"{source} is a directory, not a tar", hint=f"an OCI layout is given as oci:{source}"
        ) from error
    except OSError as error:
        raise from_os_error(error, f"read {source}") from error


def stdin() -> BinaryIO:
    """The standard input, which must not be a terminal."""
    if sys.stdin is None:
        raise Error("stdin is closed", hint="give a file", code="stdin.closed")
    if sys.stdin.isatty():
        raise InvalidArgument(
            "a tar is not typed at a terminal", hint="give a file, or redirect stdin", code="stdin.terminal"
        )
    return sys.stdin.buffer
