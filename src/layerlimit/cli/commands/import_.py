"""``layerlimit import``: a base from a tar or an image."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import click

from layerlimit.archive import Applied
from layerlimit.archive.image import Image
from layerlimit.cli.options import NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.cli.source import open_tar, stdin
from layerlimit.errors import InvalidArgument
from layerlimit.limit import format_size

_OCI = "oci:"
_DOCKER = "docker-archive:"


@click.command("import", cls=Command, short_help="Make a base from a tar or an image.")
@NAME
@click.argument("source", metavar="SOURCE")
@click.pass_obj
def command(settings: Settings, name: str, source: str) -> None:
    """Make the base NAME from SOURCE, which is one of

    \b
      FILE                         a tar of a root filesystem, plain or compressed
      -                            the same, from stdin
      oci:DIR[:TAG]                an OCI image layout
      docker-archive:FILE[:NAME]   what 'docker save' wrote; FILE may be -

    The base is there with all that SOURCE has, or not at all.
    """
    applied: list[Applied] = []
    with ExitStack() as opened:
        if source.startswith(_OCI):
            fill = _layers(settings, opened.enter_context(_oci(source.removeprefix(_OCI))), applied)
        elif source.startswith(_DOCKER):
            fill = _layers(settings, opened.enter_context(_docker(source.removeprefix(_DOCKER))), applied)
        else:
            stream = opened.enter_context(open_tar(source))

            def fill(apply: Callable[[BinaryIO], Applied]) -> None:
                applied.append(apply(stream))

        settings.open_driver(make=True).create(name, fill=fill)
    _tell(settings, name, applied)


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


def _layers(
    settings: Settings, image: Image, applied: list[Applied]
) -> Callable[[Callable[[BinaryIO], Applied]], None]:
    """What fills a base with the layers of an image, checked, and notes what each was."""

    def fill(apply: Callable[[BinaryIO], Applied]) -> None:
        for number, layer in enumerate(image.layers, 1):
            size = format_size(layer.size)
            settings.say(f"layer {number} of {len(image.layers)}: {layer.digest or layer.diff_id}, {size}")
            with image.open(layer) as stream:
                done = apply(stream)  # type: ignore[arg-type]
            if done.diff_id != layer.diff_id:
                raise InvalidArgument(
                    f"layer {number} is damaged: its diff ID is {done.diff_id}, not {layer.diff_id}",
                    hint="fetch or save the image again",
                    code="image.digest",
                )
            applied.append(done)

    return fill


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
