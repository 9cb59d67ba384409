"""``layerlimit diff``: a layer's changes as a tar."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from layerlimit.cli.options import NAME, Command
from layerlimit.cli.output import copy_to_stdout
from layerlimit.cli.settings import Settings
from layerlimit.errors import InvalidArgument, from_os_error


@click.command("diff", cls=Command, short_help="Write a layer's changes as a tar.")
@NAME
@click.option("-o", "--output", default="-", metavar="FILE", help="Write here instead of to stdout.")
@click.pass_obj
def command(settings: Settings, name: str, output: str) -> None:
    """Write what the layer NAME changes over its parent as an uncompressed OCI layer tar.

    A FILE appears, or is replaced, when it is whole.
    """
    if output == "-" and sys.stdout is not None and sys.stdout.isatty():
        raise InvalidArgument(
            "a tar is not written to a terminal",
            hint="redirect stdout, or give --output FILE",
            code="stdout.terminal",
        )
    with settings.open_store() as store, store.diff(name) as stream:
        if output == "-":
            copy_to_stdout(stream)
            return
        try:
            with _replaced(Path(output)) as file:
                shutil.copyfileobj(stream, file, 1 << 20)
                size = file.tell() if file.seekable() else None
        except OSError as error:
            raise from_os_error(error, f"write {output}") from error
    settings.say(f"wrote {output}")
    settings.show({"name": name, "file": output, "bytes": size})


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name ``path`` at the end of the block; a device or pipe is written to."""
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    staged = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
    try:
        with open(staged, "xb") as file:
            yield file
        os.rename(staged, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            staged.unlink()
        raise
