"""What Prometheus reads: calls as they were answered, layers and the disk as they are at the scrape.

Nothing about layers is kept here; a scrape asks the store. Series per layer exist for active limited layers
only, so there are as many as containers run. Labels hold no text that a client could choose freely, but for
the key of a layer that exists.
"""

from __future__ import annotations

import logging
import platform
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from layerlimit import __version__
from layerlimit.errors import Error
from layerlimit.store import Capacity, Gauge, Kind

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_LAYER_LABELS: Final = ("snapshotter", "key", "id")

log = logging.getLogger("layerlimit.metrics")


class Metrics:
    """The metrics of one daemon, in a registry of their own.

    ``gauges``, ``capacity`` and ``trash`` are asked at every scrape, in the scraper's thread. When the store
    cannot answer, its metrics are missing and ``layerlimit_store_up`` is 0; the calls' metrics stay.
    """

    def __init__(
        self,
        *,
        gauges: Callable[[], Iterable[Gauge]],
        capacity: Callable[[], Capacity],
        trash: Callable[[], int],
    ) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "layerlimit_rpc_duration_seconds",
            "Time to answer a call, by method.",
            ["rpc"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._errors = Counter(
            "layerlimit_rpc_errors",
            "Calls answered with an error, by method and gRPC status code.",
            ["rpc", "code"],
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_StoreCollector(gauges, capacity, trash))

    def answered(self, rpc: str, code: str, seconds: float) -> None:
        """Count a call of the method ``rpc``, which must be one that is served, answered with ``code``."""
        self._seconds.labels(rpc).observe(seconds)
        if code != "OK":
            self._errors.labels(rpc, code).inc()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format (:data:`CONTENT_TYPE`)."""
        return generate_latest(self.registry)


class _StoreCollector(Collector):
    """Reads the store when Prometheus asks."""

    def __init__(
        self,
        gauges: Callable[[], Iterable[Gauge]],
        capacity: Callable[[], Capacity],
        trash: Callable[[], int],
    ) -> None:
        self._gauges, self._capacity, self._trash = gauges, capacity, trash

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "layerlimit_build_info", "The version of the daemon; always 1.", labels=["version", "python"]
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        start = time.perf_counter()
        found: list[Metric] = []
        try:
            found += _layers(list(self._gauges()))
            found += _disk(self._capacity())
            found.append(_gauge("layerlimit_trash_layers", "Removed layers to be deleted.", self._trash()))
        except (Error, OSError) as error:
            log.error("the store cannot be measured: %s", error)
            found = []
        yield from found
        yield _gauge("layerlimit_store_up", "Whether the store could be read for this scrape.", bool(found))
        elapsed = time.perf_counter() - start
        yield _gauge("layerlimit_store_scrape_seconds", "How long reading the store took.", elapsed)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _layers(gauges: list[Gauge]) -> list[Metric]:
    count = GaugeMetricFamily(
        "layerlimit_layers", "Layers by kind (active, view, committed).", labels=["snapshotter", "kind"]
    )
    for (namespace, kind), number in sorted(
        Tally((each.namespace, str(each.kind)) for each in gauges).items()
    ):
        count.add_metric([namespace, kind], number)
    degraded = sum(each.degraded for each in gauges)
    active = [each for each in gauges if each.kind is Kind.ACTIVE and each.limit_bytes is not None]
    return [
        count,
        _gauge("layerlimit_degraded_layers", "Layers that turned read-only after an I/O error.", degraded),
        _per_layer("used_bytes", "Bytes used of a layer's limit.", active, lambda each: each.used_bytes),
        _per_layer("limit_bytes", "The limit of a layer.", active, lambda each: each.limit_bytes),
        _per_layer("used_inodes", "Files and directories in a layer.", active, lambda each: each.used_inodes),
        _per_layer("limit_inodes", "How many a layer can have.", active, lambda each: each.limit_inodes),
        _per_layer("mounted", "1: a mount of it is there.", active, lambda each: int(each.mounted)),
        _per_layer("degraded", "1: turned read-only.", active, lambda each: int(each.degraded)),
    ]


def _per_layer(what: str, help: str, gauges: list[Gauge], value: Callable[[Gauge], int | None]) -> Metric:
    family = GaugeMetricFamily(f"layerlimit_layer_{what}", help, labels=_LAYER_LABELS)
    for each in gauges:
        number = value(each)
        if number is not None:
            # A name that is not UTF-8 cannot be a label's value.
            key = each.name.encode(errors="backslashreplace").decode()
            family.add_metric([each.namespace, key, each.id], number)
    return family


def _disk(disk: Capacity) -> list[Metric]:
    return [
        _gauge("layerlimit_host_size_bytes", "Size of the disk below the layers.", disk.size),
        _gauge("layerlimit_host_free_bytes", "Free bytes of that disk.", disk.free),
        _gauge("layerlimit_host_floor_bytes", "With less free, no layer is made.", disk.floor),
        _gauge("layerlimit_promised_bytes", "The sum of all limits.", disk.promised),
        _gauge("layerlimit_admissible_bytes", "What limits may promise altogether.", disk.admissible),
        _gauge("layerlimit_overcommit_ratio", "Admissible bytes per byte of the disk.", disk.overcommit),
    ]
