"""What a daemon shows of itself: the interceptor of its server, and the metrics' end where it is asked for.

observer = observe(store, config.metrics.address)
server = grpc.server(..., interceptors=observer.interceptors)
server.start()
with observer.endpoint():      # /healthz answers when calls do
    ...
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc

from layerlimit.daemon.watch import Watch
from layerlimit.errors import NotSupported
from layerlimit.store import Capacity, Gauge

if TYPE_CHECKING:
    from layerlimit.daemon.metrics import Metrics

log = logging.getLogger("layerlimit.metrics")


class Waiting(Protocol):
    """What metrics ask of a store's reaper."""

    def waiting(self) -> int: ...


class Measured(Protocol):
    """What metrics ask of a store: of all its namespaces, from any thread."""

    @property
    def reaper(self) -> Waiting: ...

    def gauges(self) -> Iterable[Gauge]: ...

    def capacity(self) -> Capacity: ...


@dataclass(frozen=True, slots=True)
class Observer:
    """The interceptors of a server, and its metrics, if it has any."""

    interceptors: tuple[grpc.ServerInterceptor, ...]
    address: str = ""
    metrics: Metrics | None = None

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[None]:
        """Serve the metrics for the length of the block, if there is an address."""
        if self.metrics is None:
            yield
            return
        from layerlimit.daemon.endpoint import serving_metrics
        from layerlimit.daemon.metrics import CONTENT_TYPE

        with serving_metrics(self.address, self.metrics.exposition, CONTENT_TYPE) as address:
            log.info("metrics are at %s", address)
            yield


def observe(store: Measured, metrics_address: str) -> Observer:
    """The observer of a daemon over ``store``; without an address it logs only.

    NotSupported when metrics are wanted and their library is not installed.
    """
    if not metrics_address:
        return Observer((Watch(),))
    try:
        from layerlimit.daemon.metrics import Metrics
    except ImportError as error:
        raise NotSupported(
            "metrics need the library prometheus-client",
            hint="install it with: pip install 'layerlimit[serve]'",
            code="metrics.library",
        ) from error
    metrics = Metrics(gauges=store.gauges, capacity=store.capacity, trash=store.reaper.waiting)
    return Observer((Watch(metrics.answered),), metrics_address, metrics)
