"""``layerlimit import``: a base from a tar or an image."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from layerlimit.archive import Applied
from layerlimit.archive.image import Image
from layerlimit.cli.commands.create import limit_of
from layerlimit.cli.options import INODES, LABELS, NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.cli.source import open_tar, stdin
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
@LABELS
@click.pass_obj
def command(
    settings: Settings, name: str, source: str, size: int | None, inodes: int | None, labels: dict[str, str]
) -> None:
    """Make the committed base NAME from SOURCE, which is one of

    \b
      FILE                         a tar of a root filesystem, plain or compressed
      -                            the same, from stdin
      oci:DIR[:TAG]                an OCI image layout
      docker-archive:FILE[:NAME]   what 'docker save' wrote; FILE may be -

    The base is there with all that SOURCE has, or not at all.
    """
    limit = limit_of(size, inodes, ephemeral=False, reserve=False)
    applied: list[Applied] = []
    with ExitStack() as opened:
        if source.startswith((_OCI, _DOCKER)):
            kind = _oci if source.startswith(_OCI) else _docker
            image = opened.enter_context(kind(source.partition(":")[2]))

            def told(done: Applied) -> None:
                applied.append(done)
                layer, count = image.layers[len(applied) - 1], len(image.layers)
                what = f"{layer.digest or layer.diff_id}, {format_size(layer.size)}"
                settings.say(f"layer {len(applied)} of {count}: {what}")

            store = opened.enter_context(settings.open_store(make=True))
            store.import_image(name, image, limit=limit, labels=labels, told=told)
        else:
            stream = opened.enter_context(open_tar(source))
            store = opened.enter_context(settings.open_store(make=True))
            store.import_tar(name, stream, limit=limit, labels=labels, told=applied.append)
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
