"""Metrics: shards merge to the whole, no step stands twice, Prometheus sees what was recorded."""

from __future__ import annotations

import ast
import json
import math
import pickle
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import MetricsWriter, read_rows
from common.telemetry.metrics import Metrics
from common.telemetry.prometheus import PrometheusExporter
from common.telemetry.registry import REGISTRY
from common.telemetry.series import QUANTILES, parse_key


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    return RunDirectory(
        f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "runs"),
        "first",
    )


def values(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key not in ("step", "stage", "time")}


# --- the registry ---------------------------------------------------------------------------------


def test_every_metric_states_unit_denominator_and_help() -> None:
    for name, metric in REGISTRY.items():
        assert name == metric.name
        assert all((metric.unit, metric.denominator, metric.help)), name
        assert (metric.type == "histogram") == bool(metric.buckets), name
        assert list(metric.buckets) == sorted(set(metric.buckets)), name
        assert metric.type != "counter" or metric.reduction == "sum", name
        assert parse_key(name).name == name


def strings_of(file: Path) -> Iterator[str]:
    """Texts of a module, with those of f-strings up to their first value."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition("{")[0]


def test_every_metric_is_recorded_somewhere() -> None:
    """A name stands in the code as one text, or as two that an f-string puts together."""
    root = Path(__file__).resolve().parents[1]
    texts = {
        text
        for floor in ("common", "rollout", "reward_service", "learner")
        for file in (root / floor).rglob("*.py")
        if file.parent.name != "families"  # the registry's own
        for text in strings_of(file)
    }
    begins = [text for text in texts if "/" in text]
    assert [
        name
        for name in REGISTRY
        if name not in texts
        and not any(name.startswith(each) and name[len(each) :] in texts for each in begins)
    ] == []


def test_names_stay_apart_in_prometheus() -> None:
    assert len({name.replace("/", "_") for name in REGISTRY}) == len(REGISTRY)


def test_unknown_names_and_labels_are_errors_that_name_the_nearest() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="did you mean 'ppo/loss_policy'"):
        metrics.record("ppo/los_policy", 1.0)
    with pytest.raises(ValueError, match="no label 'componet'; did you mean 'component'"):
        metrics.record("reward/component", 1.0, componet="bleu")
    with pytest.raises(ValueError, match="needs the label 'component'"):
        metrics.record("reward/component", 1.0)
    with pytest.raises(ValueError, match="no cohort 'trainde'; did you mean 'trained'"):
        metrics.record("reward/component", 1.0, component="bleu", cohort="trainde")
    with pytest.raises(ValueError, match="cannot be 'a=b'"):
        metrics.record("reward/component", 1.0, component="a=b")
    assert values(metrics.flush(1, "mrl")) == {}


def test_counters_do_not_shrink_and_only_means_take_a_weight() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="cannot grow by -1"):
        metrics.record("rollout/tokens", -1)
    with pytest.raises(ValueError, match="takes no weight"):
        metrics.record("rollout/tokens", 1, weight=2)
    with pytest.raises(ValueError, match="weight nan"):
        metrics.record("train/loss_router", 1, weight=math.nan)


# --- recording ------------------------------------------------------------------------------------


def test_a_mean_is_weighted_by_its_denominator() -> None:
    metrics = Metrics()
    metrics.record("train/loss_lm", 1.0, weight=30)
    metrics.record("train/loss_lm", 4.0, weight=10)
    metrics.record("train/loss_lm", math.nan, weight=0)
    assert values(metrics.flush(1, "sft")) == {"train/loss_lm": 1.75}


def test_cohorts_are_counted_apart_and_all_is_the_plain_key() -> None:
    metrics = Metrics()
    metrics.record("reward/component", 0.5, component="bleu")
    metrics.record("reward/component", 0.7, component="bleu", cohort="all")
    metrics.record("reward/component", 0.9, component="bleu", cohort="trained")
    row = values(metrics.flush(1, "mrl"))
    assert row == {
        "reward/component{component=bleu}": pytest.approx(0.6),
        "reward/component{component=bleu,cohort=trained}": 0.9,
    }
    assert parse_key("reward/component{component=bleu,cohort=trained}") == (
        "reward/component",
        {"component": "bleu", "cohort": "trained"},
        "",
    )


def test_counters_are_totals_and_the_rest_is_of_the_window() -> None:
    metrics = Metrics()
    metrics.record("rollout/tokens", 5)
    metrics.record("ppo/ratio_max_deviation_first", 0.3)
    metrics.record("ppo/ratio_max_deviation_first", 0.1)
    metrics.record("ppo/kl_coefficient", 0.2)
    metrics.record("ppo/kl_coefficient", 0.1)
    assert values(metrics.flush(1, "mrl")) == {
        "rollout/tokens": 5,
        "ppo/ratio_max_deviation_first": 0.3,
        "ppo/kl_coefficient": 0.1,
    }
    metrics.record("rollout/tokens", 7)
    row = metrics.flush(2, "mrl")
    assert values(row) == {"rollout/tokens": 12}
    assert (row["step"], row["stage"]) == (2, "mrl")


def test_a_histogram_gives_mean_and_quantiles() -> None:
    metrics = Metrics()
    for length in range(1, 101):
        metrics.record("rollout/answer_tokens", length)
    row = metrics.flush(1, "mrl")
    assert row["rollout/answer_tokens"] == 50.5
    assert row["rollout/answer_tokens:p50"] == pytest.approx(50, abs=1)
    assert row["rollout/answer_tokens:p90"] == pytest.approx(90, abs=1)
    assert row["rollout/answer_tokens:max"] == 100
    assert parse_key("rollout/answer_tokens:p90").statistic == "p90"


@pytest.mark.parametrize("value", [0.5, 0.3, 0.0, 1.0, -0.005, -7.25, 9.0])
def test_every_quantile_of_a_constant_is_the_constant(value: float) -> None:
    metrics, other = Metrics(), Metrics()
    metrics.record_all("reward/value", np.full(40, value), component="mine")
    for _ in range(3):
        other.record("reward/value", value, component="mine")
    metrics.merge(other.drain())
    row = metrics.flush(1, "mrl")
    key = "reward/value{component=mine}"
    assert [row[f"{key}:{statistic}"] for statistic in ("p50", "p90", "p95", "max")] == [value] * 4
    assert row[key] == pytest.approx(value)


def test_quantiles_are_among_the_values_seen_whatever_the_shards() -> None:
    rng = np.random.default_rng(3)
    for drawn in (
        rng.normal(0.4, 0.2, 400),
        rng.choice([-1.0, 0.0, 0.32, 1.0], 400),
        rng.beta(5, 1, 400),
    ):
        whole, merged = Metrics(), Metrics()
        whole.record_all("reward/value", drawn, component="mine")
        for shard in np.split(drawn, [1, 30, 31, 250]):
            part = Metrics()
            part.record_all("reward/value", shard, component="mine")
            part.load_state_dict(json.loads(json.dumps(part.state_dict())))
            merged.merge(part.drain())
        row, again = (metrics.flush(1, "mrl") for metrics in (whole, merged))
        for statistic, share in QUANTILES.items():
            found = row[f"reward/value{{component=mine}}:{statistic}"]
            assert found == pytest.approx(again[f"reward/value{{component=mine}}:{statistic}"])
            assert found == pytest.approx(
                np.quantile(drawn, share, method="inverted_cdf"), abs=0.05
            )
            assert drawn.min() <= found <= drawn.max()


def test_a_value_that_is_not_finite_is_written_as_null() -> None:
    metrics = Metrics()
    metrics.record("train/loss_router", math.nan)
    assert values(metrics.flush(1, "sft")) == {"train/loss_router": None}


observations = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["train/loss_router", "rollout/recall"]),
            st.floats(-1e3, 1e3),
            st.integers(0, 50),
        ),
        st.tuples(
            st.sampled_from(["rollout/answer_tokens", "reward/batch_seconds"]),
            st.integers(0, 2000),
            st.integers(0, 50),
        ),
        st.tuples(
            st.sampled_from(["rollout/tokens", "rollout/tokens_per_second"]),
            st.floats(0, 1e6),
            st.just(1),
        ),
        st.tuples(
            st.sampled_from(["ppo/ratio_max_deviation_first", "run/step"]),
            st.floats(0, 1e6),
            st.just(1),
        ),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=100)
@given(shards=st.lists(observations, min_size=1, max_size=4))
def test_the_metrics_of_shards_are_the_metrics_of_the_whole(
    shards: list[list[tuple[str, float, float]]],
) -> None:
    whole, merged = Metrics(), Metrics()
    for shard in shards:
        worker = Metrics()
        for name, value, weight in shard:
            whole.record(name, value, weight)
            worker.record(name, value, weight)
        merged.merge(pickle.loads(pickle.dumps(worker.drain())))
        merged.merge(worker.drain())
    assert values(merged.flush(1, "mrl")) == pytest.approx(
        values(whole.flush(1, "mrl")), rel=1e-9, abs=1e-9
    )


def test_a_resumed_recorder_goes_on_as_if_never_interrupted() -> None:
    straight = Metrics()
    straight.record("rollout/tokens", 5)
    straight.flush(1, "mrl")
    straight.record("rollout/tokens", 6)
    straight.record("train/loss_router", 1.0, weight=2)
    straight.record("train/gradient_norm", math.inf)
    straight.record("sync/seconds", 0.3)
    resumed = Metrics()
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict(), allow_nan=False)))
    for metrics in (straight, resumed):
        metrics.record("train/loss_router", 4.0)
        metrics.record("sync/seconds", 0.1)
    assert values(resumed.flush(2, "mrl")) == values(straight.flush(2, "mrl"))


# --- metrics.jsonl --------------------------------------------------------------------------------


def write_steps(writer: MetricsWriter, *steps: int) -> None:
    for step in steps:
        metrics = Metrics()
        metrics.record("train/loss_router", step)
        writer.write(metrics.flush(step, "sft"))


def test_rows_are_appended_as_json(run: RunDirectory) -> None:
    write_steps(MetricsWriter(run), 10, 20)
    first = json.loads(run.read_text("metrics.jsonl").splitlines()[0])
    assert first["step"] == 10
    assert first["stage"] == "sft"
    assert first["train/loss_router"] == 10
    assert first["time"] > 1.7e9


def test_on_resume_no_step_stands_twice_and_a_torn_line_goes(run: RunDirectory) -> None:
    write_steps(MetricsWriter(run), 10, 20, 30)
    run.write_text("metrics.jsonl", run.read_text("metrics.jsonl") + '{"step": 40, "sta')
    assert [row["step"] for row in read_rows(run)] == [10, 20, 30]
    write_steps(MetricsWriter(run, resumed_step=20), 30, 40)
    assert [row["step"] for row in read_rows(run)] == [10, 20, 30, 40]
    MetricsWriter(run)
    assert read_rows(run) == []


def test_a_step_that_was_written_is_refused(run: RunDirectory) -> None:
    write_steps(MetricsWriter(run), 10)
    with pytest.raises(ValueError, match="step 10 after those of step 10"):
        write_steps(MetricsWriter(run, resumed_step=10), 10)


def test_a_broken_row_in_the_middle_is_named(run: RunDirectory) -> None:
    run.write_text("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: is not JSON"):
        read_rows(run)


# --- Prometheus -----------------------------------------------------------------------------------


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
