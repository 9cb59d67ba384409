"""A store as the metrics see it, without one."""

from __future__ import annotations

from dataclasses import dataclass, field

from layerlimit.store import Capacity

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """What a store says of one layer."""

    namespace: str = "small"
    name: str = "k8s.io/1/a"
    id: str = "a1"
    kind: str = "active"
    degraded: bool = False
    used_bytes: int | None = MIB
    limit_bytes: int | None = 8 * MIB
    used_inodes: int | None = 3
    limit_inodes: int | None = 100


class Reaper:
    """How many layers wait for deletion."""

    def waiting(self) -> int:
        return 7


@dataclass(slots=True)
class Source:
    """A store as metrics see it."""

    layers: list[Layer] = field(default_factory=lambda: [Layer()])
    error: Exception | None = None

    def gauges(self) -> list[Layer]:
        if self.error:
            raise self.error
        return self.layers

    def capacity(self) -> Capacity:
        return Capacity(size=1000, free=400, promised=1500, overcommit=2.0, floor=256)

    @property
    def reaper(self) -> Reaper:
        return Reaper()
