"""``layerlimit import``: a base from a tar or an image."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import click

from layerlimit.archive import Applied
from layerlimit.archive.image import Image
from layerlimit.cli.commands.create import limit_of
from layerlimit.cli.options import INODES, NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.cli.source import open_tar, stdin
from layerlimit.driver import Driver
from layerlimit.errors import InvalidArgument
from layerlimit.limit import format_size, parse_size

_OCI = "oci:"
_DOCKER = "docker-archive:"


@click.command("import", cls=Command, short_help="Make a base from a tar or an image.")
@NAME
@click.argument("source", metavar="SOURCE")
@click.option(
    "-l", "--limit", "size", type=parse_size, metavar="SIZE", help="How many bytes the base may use."
)
@click.option("--inodes", type=INODES, help="How many files and directories it may have.")
@click.pass_obj
def command(settings: Settings, name: str, source: str, size: int | None, inodes: int | None) -> None:
    """Make the base NAME from SOURCE, which is one of

    \b
      FILE                         a tar of a root filesystem, plain or compressed
      -                            the same, from stdin
      oci:DIR[:TAG]                an OCI image layout
      docker-archive:FILE[:NAME]   what 'docker save' wrote; FILE may be -

    The base is there with all that SOURCE has, or not at all.
    """
    limit = limit_of(size, inodes, ephemeral=False, reserve=False)
    with ExitStack() as opened:
        image: Image | None = None
        stream: BinaryIO | None = None
        if source.startswith(_OCI):
            image = opened.enter_context(_oci(source.removeprefix(_OCI)))
        elif source.startswith(_DOCKER):
            image = opened.enter_context(_docker(source.removeprefix(_DOCKER)))
        else:
            stream = opened.enter_context(open_tar(source))
        driver = settings.open_driver(make=True)
        with ExitStack() as undo:
            with _signals_held():
                driver.create(name, limit=limit)
                undo.callback(driver.remove, name)
            if image is not None:
                applied = _apply_layers(settings, driver, name, image)
            else:
                assert stream is not None
                applied = [driver.apply(name, stream, flat=True)]
            undo.pop_all()
    _tell(settings, name, applied)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Whoever interrupts the block does so at its end: then it is known whose the base is."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _oci(place: str) -> Image:
    from layerlimit.archive.oci import OciImage

    directory, tag = _split(place, Path.is_dir)
    return OciImage(directory, tag)


def _docker(place: str) -> Image:
    from layerlimit.archive.docker_archive import DockerArchive

    if place == "-" or place.startswith("-:"):
        return DockerArchive(stdin(), place[2:])
    file, name = _split(place, Path.exists)
    return DockerArchive(file, name)


def _split(place: str, is_there: Any) -> tuple[Path, str]:
    """A path and what follows its colon: paths and tags may both have colons, but only one split exists."""
    if not place:
        raise InvalidArgument("the source names no path", hint="write oci:DIR or docker-archive:FILE")
    if is_there(Path(place)):
        return Path(place), ""
    head, colon, tail = place.partition(":")
    while colon:
        if is_there(Path(head)):
            return Path(head), tail
        more, colon, tail = tail.partition(":")
        head = f"{head}:{more}"
    return Path(place), ""


def _apply_layers(settings: Settings, driver: Driver, name: str, image: Image) -> list[Applied]:
    applied = []
    for number, layer in enumerate(image.layers, 1):
        size = format_size(layer.size)
        settings.say(f"layer {number} of {len(image.layers)}: {layer.digest or layer.diff_id}, {size}")
        with image.open(layer) as stream:
            done = driver.apply(name, stream, flat=True)  # type: ignore[arg-type]
        if done.diff_id != layer.diff_id:
            raise InvalidArgument(
                f"layer {number} of the image is damaged: its diff ID is {done.diff_id}, not {layer.diff_id}",
                hint="fetch or save the image again",
                code="image.digest",
            )
        applied.append(done)
    return applied


def _tell(settings: Settings, name: str, applied: list[Applied]) -> None:
    for each in applied:
        for warning in each.warnings:
            settings.say(f"left out: {warning}")
    total = sum(each.bytes for each in applied)
    entries = sum(each.entries for each in applied)
    settings.say(f"imported {name}: {entries} entries, {format_size(total)}")
    settings.show(
        {
            "name": name,
            "bytes": total,
            "entries": entries,
            "layers": [
                {"diff_id": each.diff_id, "bytes": each.bytes, "entries": each.entries} for each in applied
            ],
        }
    )
