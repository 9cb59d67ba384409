"""A store as the metrics see it, without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from layerlimit.store import Capacity, Gauge, Kind

MIB = 1 << 20


def gauge(name: str = "k8s.io/1/a", **other: Any) -> Gauge:
    """A layer that uses an eighth of its limit, but for what is said of it."""
    usual = {
        "namespace": "small",
        "id": "a1",
        "kind": Kind.ACTIVE,
        "mounted": True,
        "degraded": False,
        "used_bytes": MIB,
        "limit_bytes": 8 * MIB,
        "used_inodes": 3,
        "limit_inodes": 100,
    }
    return Gauge(name=name, **{**usual, **other})


class Reaper:
    """How many layers wait for deletion."""

    def waiting(self) -> int:
        return 7


@dataclass(slots=True)
class Source:
    """A store as metrics see it."""

    layers: list[Gauge] = field(default_factory=lambda: [gauge()])
    error: Exception | None = None

    def gauges(self) -> list[Gauge]:
        if self.error:
            raise self.error
        return self.layers

    def capacity(self) -> Capacity:
        return Capacity(size=1000, free=400, promised=1500, overcommit=2.0, floor=256)

    @property
    def reaper(self) -> Reaper:
        return Reaper()
