"""A real Prometheus scrapes the real exporter: every metric of the registry arrives, and every
query of every dashboard and alert gives data."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.telemetry.metric import Metric
from common.telemetry.metrics import Metrics
from common.telemetry.prometheus import PrometheusExporter, prometheus_name
from common.telemetry.registry import REGISTRY
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.dashboards import DASHBOARDS
from deploy.monitoring.grafana import SCOPE
from deploy.monitoring.panels import Panel, Query
from deploy.monitoring.provisioning import prometheus_config, targets_text
from deploy.monitoring.queries import expand, parts_of
from tests.prometheus_tools import ask, serving, until

VALUES = {
    "cohort": ("all", "trained"),
    "memory": ("kept", "erased"),
    "distance": ("all", "1", "2"),
    "role": ("learner", "rollout", "conductor", "rewards", "driver"),
    "pool": ("rollout", "rewards"),
    "state": ("healthy", "dead"),
    "kind": ("recall_falls", "lists"),
}
"""Values of labels that queries ask for; any other label gets one value."""
QUERIES = [
    pytest.param(panel, asked, id=f"{each.uid}: {panel.question} {asked.legend}")
    for each in DASHBOARDS
    for panel in each.panels
    for asked in panel.queries
]
SCRAPE, WINDOW = 1, "10s"


def prometheus_of(folder: Path, endpoints: dict[str, str]) -> Any:
    """A Prometheus that scrapes these, once a second."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(targets_text(endpoints))
    config = prometheus_config(str(folder / "runs.json"), str(folder / "rules.yml"), SCRAPE)
    return serving(folder / "server", config | {"rule_files": []})


def text_of(asked: Query) -> str:
    """A query as Grafana sends it with all runs chosen."""
    expression = expand("here", asked.expression, SCOPE)
    return expression.replace("$run", ".*").replace("$__rate_interval", WINDOW)


def record_everything(metrics: Metrics) -> None:
    """One observation of every series of every metric."""
    for metric in REGISTRY.values():
        if metric.name == "run/step":
            continue  # `flush` records it
        choices = [VALUES.get(label, ("3",)) for label in metric.labels]
        for values in itertools.product(*choices):
            metrics.record(metric.name, 1.0, **dict(zip(metric.labels, values, strict=True)))


def await_step(address: str, step: int) -> None:
    asked = f"engram_run_step == {step}"
    until(lambda: ask(address, "query", query=asked)["result"], f"step {step} to be scraped")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """A Prometheus that has seen everything grow for some scrapes, and the moment after them."""
    exporter, metrics = PrometheusExporter("127.0.0.1", 0, "everything"), Metrics()
    folder = tmp_path_factory.mktemp("everything")
    try:
        with prometheus_of(folder, {"everything": exporter.url}) as address:
            for step in range(1, 7):
                record_everything(metrics)
                metrics.flush(step, "mrl")
                exporter.publish(metrics)
                await_step(address, step)
            yield address, time.time()
    finally:
        exporter.close()


def names_at(address: str) -> set[str]:
    return {name for name in ask(address, "label/__name__/values") if name.startswith("engram_")}


def names_of(metric: Metric) -> set[str]:
    name = prometheus_name(metric)
    return {f"{name}_{part}" for part in parts_of(metric)} or {name}


def test_every_metric_of_the_registry_is_scraped_with_its_help(scraped: tuple[str, float]) -> None:
    address, _ = scraped
    found = names_at(address)
    wanted = {name for metric in REGISTRY.values() for name in names_of(metric)}
    assert wanted - found == set()
    told = ask(address, "metadata")
    for metric in REGISTRY.values():
        entry = (
            told.get(prometheus_name(metric))
            or told[prometheus_name(metric).removesuffix("_total")]
        )
        assert metric.denominator in entry[0]["help"]
        assert entry[0]["type"] == metric.type


@pytest.mark.parametrize(("panel", "asked"), QUERIES)
def test_every_query_of_every_dashboard_gives_numbers(
    scraped: tuple[str, float], panel: Panel, asked: Query
) -> None:
    address, moment = scraped
    found = ask(address, "query", query=text_of(asked), time=str(moment))["result"]
    assert found, "no data"
    values = {each["value"][1] for each in found}
    assert values != {"NaN"}, panel.question
    for each in found:
        shown = {label for label in each["metric"] if f"{{{{{label}}}}}" in asked.legend}
        wanted = {part.split("}}")[0] for part in asked.legend.split("{{")[1:]}
        assert shown == wanted, "the legend shows a label that its lines lack"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_prometheus_takes_every_rule(scraped: tuple[str, float], alert: Any) -> None:
    ask(scraped[0], "query", query=expand("here", alert.expression))


def test_a_gauge_that_is_gone_is_gone_from_prometheus_too(
    scraped: tuple[str, float], tmp_path: Path
) -> None:
    exporter, metrics = PrometheusExporter("127.0.0.1", 0, "short"), Metrics()
    try:
        with prometheus_of(tmp_path / "gone", {"short": exporter.url}) as address:
            metrics.record("memory/norm", 1.0, writes=1)
            metrics.flush(1, "mrl")
            exporter.publish(metrics)
            until(lambda: ask(address, "query", query="engram_memory_norm")["result"], "a norm")
            metrics.flush(2, "sft")  # another stage, which has no memory
            exporter.publish(metrics)
            until(
                lambda: not ask(address, "query", query="engram_memory_norm")["result"],
                "the norm to go",
            )
            assert ask(address, "query", query="engram_run_step")["result"]
    finally:
        exporter.close()


def test_a_component_that_no_longer_applies_leaves_prometheus_within_a_stage(
    scraped: tuple[str, float], tmp_path: Path
) -> None:
    exporter, metrics = PrometheusExporter("127.0.0.1", 0, "narrowed"), Metrics()
    asked = "engram_reward_component"

    def components() -> set[str]:
        found = ask(address, "query", query=asked)["result"]
        return {each["metric"]["component"] for each in found}

    try:
        with prometheus_of(tmp_path / "narrowed", {"narrowed": exporter.url}) as address:
            metrics.record("run/progress", 0.1)
            for step in range(1, 6):
                for component in ("bleu", "cosine") if step < 3 else ("bleu",):
                    metrics.record("reward/component", 0.5, component=component)
                metrics.flush(step, "mrl")
                exporter.publish(metrics)
                await_step(address, step)
                # Two whole rows without it are not enough to leave.
                wanted = {"bleu", "cosine"} if step < 5 else {"bleu"}
                assert components() == wanted, step
                assert ask(address, "query", query="engram_run_progress")["result"]
    finally:
        exporter.close()
