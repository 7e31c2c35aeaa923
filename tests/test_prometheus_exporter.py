"""What Prometheus reads of a run, and for how long."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.failures import InputError
from common.telemetry.metrics import Metrics
from common.telemetry.prometheus import PrometheusExporter


def scraped_every(seconds: float, exporter: PrometheusExporter, over: threading.Event) -> list[str]:
    """Answers to a scraper, until the exporter is gone or it is told to stop."""
    found = []
    while not over.wait(seconds):
        try:
            with urllib.request.urlopen(exporter.url, timeout=5) as answer:
                found.append(answer.read().decode())
        except OSError:
            break
    return found


def test_the_last_figures_of_a_run_are_scraped_before_it_ends() -> None:
    exporter, metrics = PrometheusExporter("127.0.0.1", 0, "demo"), Metrics()
    with ThreadPoolExecutor() as pool:
        scraper = pool.submit(scraped_every, 0.4, exporter, threading.Event())
        time.sleep(1.1)
        metrics.record("objective/scores", 0.625)
        exporter.publish(metrics)
        exporter.close()
        assert 'engram_objective_scores{run="demo"} 0.625' in scraper.result(timeout=10)[-1]


def test_a_run_that_nobody_scrapes_any_more_ends_at_once() -> None:
    exporter, metrics, over = (
        PrometheusExporter("127.0.0.1", 0, "demo"),
        Metrics(),
        threading.Event(),
    )
    with ThreadPoolExecutor() as pool:
        scraper = pool.submit(scraped_every, 0.1, exporter, over)
        time.sleep(0.5)
        over.set()
        assert len(scraper.result(timeout=10)) > 1
    time.sleep(0.5)
    metrics.record("objective/scores", 0.5)
    exporter.publish(metrics)
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < 1.5, "the server looks twice a second whether it should end"


@pytest.fixture
def exporter() -> Iterator[PrometheusExporter]:
    exporter = PrometheusExporter("127.0.0.1", 0, "demo")
    yield exporter
    exporter.close()


def scrape(exporter: PrometheusExporter) -> dict[str, float]:
    with urllib.request.urlopen(exporter.url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if not line.startswith("#")
    }


def test_what_was_recorded_can_be_scraped(exporter: PrometheusExporter) -> None:
    metrics = Metrics()
    metrics.record("ppo/loss_policy", 0.25, weight=4)
    metrics.record("rollout/tokens", 10)
    metrics.flush(7, "mrl")
    metrics.record("rollout/tokens", 5)
    metrics.record("fleet/workers", 2, pool="rollout", state="healthy")
    metrics.record("reward/component", 0.5, component="bleu", cohort="trained")
    metrics.record("reward/batch_seconds", 1)
    metrics.record("reward/batch_seconds", 5)
    exporter.publish(metrics)
    seen = scrape(exporter)
    assert seen['engram_ppo_loss_policy{run="demo"}'] == 0.25
    assert seen['engram_rollout_tokens_total{run="demo"}'] == 15
    assert seen['engram_run_step{run="demo"}'] == 7
    assert seen['engram_fleet_workers{pool="rollout",run="demo",state="healthy"}'] == 2
    assert seen['engram_reward_component{cohort="trained",component="bleu",run="demo"}'] == 0.5
    assert seen['engram_reward_batch_seconds_bucket{le="1.0",run="demo"}'] == 1
    assert seen['engram_reward_batch_seconds_bucket{le="+Inf",run="demo"}'] == 2
    assert seen['engram_reward_batch_seconds_sum{run="demo"}'] == 6


def test_unlabelled_counters_are_there_before_anything_happened(
    exporter: PrometheusExporter,
) -> None:
    assert scrape(exporter)['engram_reward_turns_total{run="demo"}'] == 0


def test_a_gauge_of_a_stage_that_is_over_is_no_longer_shown(exporter: PrometheusExporter) -> None:
    metrics = Metrics()
    metrics.record("train/loss_masked_lm", 1.0)
    metrics.record("train/tokens", 9)
    metrics.flush(1, "joint_lm")
    metrics.record("objective/kl", 0.1)
    metrics.flush(2, "mrl")
    exporter.publish(metrics)
    seen = scrape(exporter)
    assert 'engram_train_loss_masked_lm{run="demo"}' not in seen
    assert seen['engram_objective_kl{run="demo"}'] == 0.1
    assert seen['engram_train_tokens_total{run="demo"}'] == 9


def shown_after(metrics: Metrics, step: int, **recorded: float) -> set[str]:
    """Series of eval/reward and run/progress that Prometheus would see after a row. recorded:
    components and their values."""
    for component, value in recorded.items():
        metrics.record("eval/reward", value, component=component)
    metrics.flush(step, "mrl")
    return {each for each in metrics.current() if each.startswith(("eval/reward", "run/progress"))}


def test_a_labelled_gauge_goes_when_its_metric_came_three_times_without_it() -> None:
    metrics = Metrics()
    metrics.record("run/progress", 0.1)
    both = {"run/progress", "eval/reward{component=bleu}", "eval/reward{component=mine}"}
    assert shown_after(metrics, 1, bleu=0.5, mine=0.5) == both
    assert shown_after(metrics, 2, bleu=0.5) == both
    assert shown_after(metrics, 3, bleu=0.5) == both, "two rows are not enough"
    without = both - {"eval/reward{component=mine}"}
    assert shown_after(metrics, 4, bleu=0.5) == without
    assert shown_after(metrics, 5, bleu=0.5, mine=0.5) == both, "it comes back"
    assert [shown_after(metrics, step) for step in range(6, 40)][-1] == {"run/progress"}, (
        "a metric that ended, while one without labels stays"
    )


def test_a_gauge_of_rare_evaluations_stays_between_them() -> None:
    metrics = Metrics()
    bleu, both = "eval/reward{component=bleu}", dict.fromkeys(("bleu", "mine"), 0.5)
    for step in range(1, 102):
        measured = {"bleu": 0.5} if step > 41 else both
        shown = shown_after(metrics, step, **(measured if step % 20 == 1 else {}))
        assert bleu in shown, "recorded every twenty rows"
        assert ("eval/reward{component=mine}" in shown) == (step < 101), step
    later = [shown_after(metrics, step) for step in range(102, 162)]
    assert bleu in later[-2], "measured last in row 101"
    assert later[-1] == set()


def test_an_evaluation_beside_the_others_takes_none_of_them_away() -> None:
    """One more is made where a step of the curriculum begins."""
    metrics = Metrics()
    for step in range(1, 60):
        shown = shown_after(metrics, step, **({"bleu": 0.5} if step in (1, 21, 22, 41) else {}))
        assert "eval/reward{component=bleu}" in shown, step


def test_a_gauge_that_was_recorded_once_goes_after_a_hundred_rows() -> None:
    metrics = Metrics()
    seen = {
        step: shown_after(metrics, step, **({} if step > 1 else {"bleu": 1})) for step in (1, 2)
    }
    assert seen[1] == seen[2] != set()
    seen |= {step: shown_after(metrics, step) for step in range(3, 105)}
    assert [len(seen[step]) for step in (100, 101, 102)] == [1, 0, 0]


def test_a_second_part_of_a_row_is_no_row_of_its_own() -> None:
    """The recorder flushes a row twice, the second time for what the first one showed."""
    metrics = Metrics()
    first = shown_after(metrics, 1, bleu=0.5, mine=0.5)
    for step in (2, 3):
        shown_after(metrics, step, bleu=0.5)
        assert shown_after(metrics, step, bleu=0.5) == first


def test_a_port_that_is_taken_is_bad_input() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"metrics\.port: cannot listen on 127\.0\.0\.1"):
            PrometheusExporter("127.0.0.1", taken.getsockname()[1], "demo")


def test_a_closed_exporter_gives_its_port_back() -> None:
    first = PrometheusExporter("127.0.0.1", 0, "demo")
    first.close()
    second = PrometheusExporter("127.0.0.1", first.port, "demo")
    second.close()
    assert second.port == first.port
