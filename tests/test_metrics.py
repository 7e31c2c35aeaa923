"""Metrics: shards merge to the whole, no step stands twice, Prometheus sees what was recorded."""

from __future__ import annotations

import ast
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import MetricsWriter, read_rows
from common.telemetry.metrics import Metrics
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
