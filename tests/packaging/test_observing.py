"""The dashboard and the alert rules: well-formed, and every metric they name is one that the daemon has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from layerlimit import Limit, Store
from layerlimit.daemon.observe import observe
from tests.driver.test_limited import hurt
from tests.lanes import PROMTOOL

MIB = 1 << 20
PACKAGING = Path(__file__).parents[2] / "packaging"
RULES = PACKAGING / "prometheus" / "layerlimit.rules.yaml"
DASHBOARD = PACKAGING / "grafana" / "layerlimit.json"
METRIC = re.compile(r"\b(?:layerlimit|process)_[a-z_]+")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of every sample that a daemon shows of a store with layers of all sorts, by name."""
    with Store(tmp_path_factory.mktemp("observed") / "root") as store:
        for name in ("limited", "degraded"):
            store.create(name, limit=Limit(MIB * 8))
            store.mount(name)
        store.create("unlimited")
        hurt(store.driver, store.stat("degraded").id)
        observer = observe(store, "unix:/unused")
        assert observer.metrics is not None
        observer.metrics.answered("Prepare", "INTERNAL", 0.1)
        samples = [
            sample
            for family in text_string_to_metric_families(observer.metrics.exposition().decode())
            for sample in family.samples
        ]
        store.driver.cleanup()
    degraded = {s.labels["key"]: s.value for s in samples if s.name == "layerlimit_layer_degraded"}
    assert degraded == {"limited": 0, "degraded": 1}
    return {sample.name: {*sample.labels, "instance", "job"} for sample in samples}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


@pytest.mark.lane("root", "overlay", "loop")
def test_every_metric_is_one_that_the_daemon_has(exported: dict[str, set[str]]) -> None:
    named = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert named
    assert named - exported.keys() == set()


@pytest.mark.lane("root", "overlay", "loop")
def test_every_label_is_one_that_the_metric_has(exported: dict[str, set[str]]) -> None:
    for expression in expressions():
        labels = set(re.findall(r"\b([a-z]+)\s*=[~=]", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            labels |= {word.strip() for word in group.split(",")}
        names = METRIC.findall(expression)
        known = set.union(*(exported[name] for name in names)) if names else {"job"}
        assert labels <= known, expression


def test_the_alerts_say_what_to_do() -> None:
    alerts = {rule["alert"]: rule for rule in rules()}
    assert {
        "LayerlimitDown",
        "LayerlimitHostNearlyFull",
        "LayerlimitOvercommitted",
        "LayerlimitLayerNearlyFull",
        "LayerlimitLayerDegraded",
        "LayerlimitRpcErrors",
    } <= alerts.keys()
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert {"summary", "description"} <= rule["annotations"].keys(), name


def test_the_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.lane("promtool")
def test_prometheus_accepts_the_rules() -> None:
    done = subprocess.run(
        [PROMTOOL, "check", "rules", str(RULES)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.lane("promtool")
def test_the_alerts_fire(tmp_path: Path) -> None:
    """Prometheus itself evaluates the rules over made-up series."""
    series = {
        'up{job="layerlimit", instance="a"}': "LayerlimitDown",
        'layerlimit_layer_used_bytes{instance="a", key="k"}': "LayerlimitLayerNearlyFull",
        'layerlimit_degraded_layers{instance="a"}': "LayerlimitLayerDegraded",
    }
    values = {
        "LayerlimitDown": "0x60",
        "LayerlimitLayerNearlyFull": "95x60",
        "LayerlimitLayerDegraded": "2x60",
    }
    given = [{"series": name, "values": values[alert]} for name, alert in series.items()]
    given += [
        {"series": 'layerlimit_layer_limit_bytes{instance="a", key="k"}', "values": "100x60"},
        {"series": 'layerlimit_layer_used_bytes{instance="a", key="fine"}', "values": "80x60"},
        {"series": 'layerlimit_layer_limit_bytes{instance="a", key="fine"}', "values": "100x60"},
        {"series": 'layerlimit_host_free_bytes{instance="a"}', "values": "500x60"},
        {"series": 'layerlimit_host_size_bytes{instance="a"}', "values": "1000x60"},
        {"series": 'layerlimit_host_floor_bytes{instance="a"}', "values": "100x60"},
        {"series": 'layerlimit_rpc_errors_total{rpc="Prepare", code="NOT_FOUND"}', "values": "0+10x60"},
    ]
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": given,
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "20m",
                        "exp_samples": [
                            {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in series.values()
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(tests))
    done = subprocess.run([PROMTOOL, "test", "rules", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
