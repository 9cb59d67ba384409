"""What a scrape shows."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from layerlimit import __version__
from layerlimit.daemon.metrics import Metrics
from layerlimit.errors import Corrupt
from layerlimit.store import Kind
from tests.daemon.gauges import MIB, Source, gauge

Sample = tuple[str, tuple[tuple[str, str], ...]]


def metrics_of(source: Source) -> Metrics:
    return Metrics(gauges=source.gauges, capacity=source.capacity, trash=source.reaper.waiting)


def scrape(metrics: Metrics) -> dict[Sample, float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: dict[Sample, float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_layers_and_the_disk_are_read_at_the_scrape() -> None:
    source = Source([])
    metrics = metrics_of(source)
    assert not [name for name, _ in scrape(metrics) if name.startswith("layerlimit_layer_")]
    source.layers = [
        gauge(),
        gauge(name="unlimited", id="b", limit_bytes=None, limit_inodes=None),
        gauge(name="base", id="c", kind=Kind.COMMITTED),
        gauge(name="sick", id="d", degraded=True, used_bytes=None, used_inodes=None, limit_inodes=None),
    ]
    found = scrape(metrics)
    one = {"snapshotter": "small", "key": "k8s.io/1/a", "id": "a1"}
    assert value(found, "layerlimit_layer_used_bytes", **one) == MIB
    assert value(found, "layerlimit_layer_limit_bytes", **one) == 8 * MIB
    assert value(found, "layerlimit_layer_used_inodes", **one) == 3
    assert value(found, "layerlimit_layer_limit_inodes", **one) == 100
    assert value(found, "layerlimit_layer_mounted", **one) == 1
    assert value(found, "layerlimit_layers", snapshotter="small", kind="active") == 3
    assert value(found, "layerlimit_layers", snapshotter="small", kind="committed") == 1
    assert value(found, "layerlimit_degraded_layers") == 1
    # A layer that cannot be measured shows no number, never 0.
    keys = {dict(labels)["key"] for name, labels in found if name == "layerlimit_layer_used_bytes"}
    assert keys == {"k8s.io/1/a"}
    limited = {dict(labels)["key"] for name, labels in found if name == "layerlimit_layer_limit_bytes"}
    assert limited == {"k8s.io/1/a", "sick"}
    disk = [value(found, f"layerlimit_{name}") for name in ("host_size_bytes", "host_free_bytes")]
    assert disk == [1000, 400]
    assert value(found, "layerlimit_host_floor_bytes") == 256
    assert value(found, "layerlimit_promised_bytes") == 1500
    assert value(found, "layerlimit_admissible_bytes") == 2000
    assert value(found, "layerlimit_overcommit_ratio") == 2
    assert value(found, "layerlimit_trash_layers") == 7
    assert value(found, "layerlimit_store_up") == 1
    assert [dict(labels)["version"] for name, labels in found if name == "layerlimit_build_info"] == [
        __version__
    ]


def test_calls_are_counted_by_method_and_code() -> None:
    metrics = metrics_of(Source())
    metrics.answered("Prepare", "OK", 0.002)
    metrics.answered("Prepare", "NOT_FOUND", 0.004)
    found = scrape(metrics)
    assert value(found, "layerlimit_rpc_duration_seconds_count", rpc="Prepare") == 2
    assert value(found, "layerlimit_rpc_duration_seconds_sum", rpc="Prepare") == pytest.approx(0.006)
    assert value(found, "layerlimit_rpc_errors_total", rpc="Prepare", code="NOT_FOUND") == 1
    assert not [
        labels for name, labels in found if name.endswith("errors_total") and ("code", "OK") in labels
    ]


def test_a_store_that_cannot_be_read_is_said_and_hides_no_calls(caplog: pytest.LogCaptureFixture) -> None:
    metrics = metrics_of(Source(error=Corrupt("the database is damaged")))
    metrics.answered("Stat", "OK", 0.001)
    found = scrape(metrics)
    assert value(found, "layerlimit_store_up") == 0
    assert value(found, "layerlimit_rpc_duration_seconds_count", rpc="Stat") == 1
    assert not [name for name, _ in found if "host" in name or name.startswith("layerlimit_layer")]
    assert "the database is damaged" in caplog.text


def test_daemons_do_not_share_numbers() -> None:
    first, second = metrics_of(Source()), metrics_of(Source())
    first.answered("Stat", "OK", 0.001)
    assert not [name for name, _ in scrape(second) if name == "layerlimit_rpc_duration_seconds_count"]


def test_keys_are_hostile() -> None:
    hostile = 'a"} 1\nlayerlimit_store_up 0\\\udcff'
    found = scrape(metrics_of(Source([gauge(name=hostile)])))
    assert value(found, "layerlimit_store_up") == 1
    (key,) = [dict(labels)["key"] for name, labels in found if name == "layerlimit_layer_limit_bytes"]
    assert key == 'a"} 1\nlayerlimit_store_up 0\\\\udcff'
