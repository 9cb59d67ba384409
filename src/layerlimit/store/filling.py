"""What fills a new layer before it gets its name: layer tars, or the layers of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO, cast

from layerlimit.archive import Applied
from layerlimit.archive import Limits as ArchiveLimits
from layerlimit.archive.image import Image
from layerlimit.driver import Driver
from layerlimit.errors import InvalidArgument

#: Is told what each layer tar came to, as soon as it is applied.
Told = Callable[[Applied], None]


def fill_from_tars(
    driver: Driver,
    id: str,
    streams: Sequence[BinaryIO],
    *,
    limits: ArchiveLimits | None,
    flat: bool,
    told: Told | None,
) -> tuple[str | None, str]:
    """Apply the tars, the lowest first; returns the diff ID if it was one, and the digest of the content."""
    diff_ids = []
    for stream in streams:
        applied = driver.apply(id, stream, limits=limits, flat=flat)
        diff_ids.append(applied.diff_id)
        if told is not None:
            told(applied)
    return diff_ids[0] if len(diff_ids) == 1 else None, driver.content_id(id)


def fill_from_image(
    driver: Driver, id: str, image: Image, *, limits: ArchiveLimits | None, told: Told | None
) -> tuple[str | None, str]:
    """Apply all layers of an image; InvalidArgument when one is not what the image says that it is."""
    for number, layer in enumerate(image.layers, 1):
        with image.open(layer) as stream:
            applied = driver.apply(id, cast(BinaryIO, stream), limits=limits, flat=True)
        if applied.diff_id != layer.diff_id:
            raise InvalidArgument(
                f"layer {number} of the image is damaged: its diff ID is {applied.diff_id},"
                f" not {layer.diff_id}",
                hint="fetch or save the image again",
                code="image.digest",
            )
        if told is not None:
            told(applied)
    return image.layers[0].diff_id if len(image.layers) == 1 else None, driver.content_id(id)
