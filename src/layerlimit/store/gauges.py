"""How layers are at this moment, for those who look at all of them and may wait for none."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from layerlimit.driver.layout import Layout
from layerlimit.driver.records import Records
from layerlimit.errors import Error
from layerlimit.limit import ImageLimiter
from layerlimit.linux.statx import is_mount_point
from layerlimit.store.entry import Gauge, Kind


class Gauges:
    """Reads layers of one root without any lock: a few files and system calls each, in constant time."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root, go=False)
        self._records = Records(self._layout)
        self._limiter = ImageLimiter(root)

    def read(self, namespace: str, name: str, id: str, kind: Kind, *, limited: bool) -> Gauge:
        """The layer ``id``; limit and usage are those of one that is ``limited`` and active."""
        gauge = Gauge(namespace, name, id, kind)
        with contextlib.suppress(Error, OSError):  # removed meanwhile, or damaged: check tells
            gauge = replace(gauge, mounted=any(map(is_mount_point, self._layout.shown(id))))
            if limited and kind is Kind.ACTIVE:
                gauge = self._measured(gauge)
        return gauge

    def _measured(self, gauge: Gauge) -> Gauge:
        record = self._records.record(gauge.id)
        if record is None:
            return gauge
        usage = self._limiter.usage(gauge.id, record)
        # What was free when it was new and what is free now belong together: not while it gets another size.
        settled = record.growing is None and self._records.record(gauge.id) == record
        return replace(
            gauge,
            degraded=self._limiter.health(gauge.id).state == "degraded",
            used_bytes=usage.bytes if settled else None,
            limit_bytes=record.limit.bytes,
            used_inodes=usage.inodes if settled else None,
            limit_inodes=record.limit.inodes or record.fresh_inodes or None,
        )
