"""Docker before 0.7 kept one directory per image and container; this takes them in.

    graph/<id>/json, layer/              {"id": …, "parent": …}, content of an image layer
    containers/<id>/config.json, rw/     {"Image": …}, content of a container's writable layer
    repositories                         renamed to repositories-aufs, as Docker did

Each layer is created empty, then its content is renamed over the empty directory; where a rename is not
possible (another file system, a mount) a symbolic link takes its place, and a later run renames it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from layerlimit.driver.conversion import convert
from layerlimit.driver.layout import Layout, check_id
from layerlimit.errors import Corrupt, Error, NotFound, from_os_error

if TYPE_CHECKING:
    from layerlimit.driver.driver import Driver


_T = TypeVar("_T")


class _Image(msgspec.Struct):
    id: str
    parent: str = ""


class _Container(msgspec.Struct):
    Image: str


class Migration:
    """One run over one old data root."""

    def __init__(self, driver: Driver, layout: Layout) -> None:
        self._driver = driver
        self._layout = layout

    def run(self, path: Path, setup_init: Callable[[str], None]) -> None:
        """Images first, parents before children, then containers; nothing to do without ``graph/``."""
        graph = path / "graph"
        if not graph.is_dir():
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(path / "repositories", path / "repositories-aufs")
            self._images(graph)
            containers = path / "containers"
            if containers.is_dir():
                for directory in sorted(containers.iterdir()):
                    if os.path.lexists(directory / "rw") or self._is_container(directory):
                        self._container(directory, setup_init)
        except OSError as error:
            raise from_os_error(error, f"migrate {path}") from error

    def _is_container(self, directory: Path) -> bool:
        return (directory / "config.json").is_file() and self._driver.exists(directory.name)

    def _images(self, graph: Path) -> None:
        images = {}
        for directory in sorted(graph.iterdir()):
            # After a run the content is gone from here, but its json still says who the parent is.
            if (directory / "layer").is_dir() or self._driver.exists(directory.name):
                image = _read(directory / "json", _Image)
                images[check_id(image.id)] = (image, directory)
        pending = dict(images)
        while pending:
            ready = [id for id, (image, _) in pending.items() if image.parent not in pending]
            if not ready:
                raise Corrupt(f"the images in {graph} are each other's parents", code="migrate.cycle")
            for id in ready:
                image, directory = pending.pop(id)
                if image.parent and image.parent not in images:
                    raise NotFound(
                        f"image {id} has the parent {image.parent}, which {graph} does not hold",
                        hint="restore it, or remove the image",
                        code="migrate.parent",
                    )
                self._take(directory / "layer", id, image.parent)

    def _container(self, directory: Path, setup_init: Callable[[str], None]) -> None:
        id = check_id(directory.name)
        container = _read(directory / "config.json", _Container)
        if not self._driver.exists(container.Image):
            raise NotFound(
                f"container {id} has the image {container.Image}, which is not there",
                hint="restore the image, or remove the container",
                code="migrate.image",
            )
        init = f"{id}-init"
        if not self._driver.exists(id):
            if self._driver.exists(init):
                self._driver.remove(init)  # half set up by an interrupted run
            self._driver.create(init, container.Image)
            with self._driver.mounted(init) as path:
                setup_init(str(path))
        self._take(directory / "rw", id, init)

    def _take(self, source: Path, id: str, parent: str) -> None:
        """Create the layer unless it is there, and move its content in unless it has been."""
        if source.is_dir() and not source.is_symlink() and self._driver.union == "overlay":
            convert(source)
        if not self._driver.exists(id):
            self._driver.create(id, parent)
        if source.is_dir():
            relocate(source, self._layout.diff(id))


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise Corrupt(f"{path} cannot be read: {error}", hint="restore it", code="migrate.json") from error


def relocate(old: Path, new: Path) -> None:
    """Have the content of ``old`` at ``new``: renamed, or reached through a symbolic link."""
    if new.is_symlink():
        new.unlink()
    try:
        os.rename(old, new)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(new)
        try:
            os.symlink(old, new)
        except OSError as second:
            raise Error(
                f"cannot rename {old} to {new} ({error.strerror}), nor link it ({second.strerror})",
                code="migrate.relocate",
            ) from second
