"""What is recorded of rewards: distributions, saturation, alarms, and how components go with
recall."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.components import Bleu, FunctionReward, Length, Recall
from common.config.loader import load_run
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, RewardTerm, Strategy, Turn
from common.telemetry.metrics import Metrics
from reward_service.compose import judge
from reward_service.copies import SAMPLE, copy_gains
from reward_service.monitor import (
    Alarm,
    BatchMonitor,
    alarms,
    columns,
    copy_alarms,
    recall_correlations,
    record_components,
)
from reward_service.worker import record_rewards


def turns(
    terms: Mapping[str, RewardTerm] | None = None, **values: Sequence[float | None]
) -> list[Turn]:
    """One scored turn per place of the lists; None where the component does not apply."""
    return [
        Turn(
            [2], [3], [0.0], [3], reward=0.0,
            rewards={name: value for name,
            value in zip(values, row, strict=True) if value is not None},
            terms={name: (terms or {}).get(name, RewardTerm(1.0, "v")) for name in values},
        )
        for row in zip(*values.values(), strict=True)
    ]  # fmt: skip


def recorded(some: Sequence[Turn]) -> dict[str, Any]:
    metrics = Metrics()
    record_components(metrics, some)
    return metrics.flush(1, "mrl")


def batch(some: Sequence[Turn]) -> list[Episode]:
    return [Episode("e", "t", 0, (Turn([2], [3], [], [3]), *some), 0)]


# --- one scoring call -----------------------------------------------------------------------------


def test_mean_distribution_and_saturation_are_over_the_turns_that_a_component_applies_to() -> None:
    row = recorded(turns(bleu=[0.0, 0.0, 0.5, 1.0], recall=[None, 1.0, -0.5, None]))
    assert row["reward/component{component=bleu}"] == 0.375
    assert row["reward/component{component=recall}"] == 0.25
    assert row["reward/value{component=recall}:max"] == 1.0
    assert row["reward/saturated{component=bleu,end=low}"] == 0.5
    assert row["reward/saturated{component=bleu,end=high}"] == 0.25
    assert row["reward/saturated{component=recall,end=low}"] == 0.0, (
        "what is told wrongly is still told apart"
    )
    assert row["reward/saturated{component=recall,end=high}"] == 0.5


def test_the_figures_of_two_calls_are_those_of_one() -> None:
    rng = np.random.default_rng(0)
    some = turns(bleu=rng.integers(0, 5, 40) / 4, length=rng.random(40))
    merged = Metrics()
    for part in (some[:7], some[7:]):
        worker = Metrics()
        record_components(worker, part)
        merged.merge(worker.drain())
    row = merged.flush(1, "mrl")
    assert {key: value for key, value in row.items() if key != "time"} == pytest.approx(
        {key: value for key, value in recorded(some).items() if key != "time"}
    )


def test_many_values_at_once_are_recorded_as_one_by_one() -> None:
    values = np.concatenate(
        [np.random.default_rng(1).normal(0.5, 2, 300), [-9, -5, 0, 0, 1, 1, 5, 9]]
    )
    together, apart = Metrics(), Metrics()
    together.record_all("reward/value", values, component="x")
    together.record_all("reward/value", np.array([]), component="x")
    for value in values:
        apart.record("reward/value", value, component="x")
    ours, theirs = together.state(), apart.state()
    assert ours.keys() == theirs.keys()
    assert ours["reward/value{component=x}"][1:] == theirs["reward/value{component=x}"][1:]
    assert ours["reward/value{component=x}"][0] == pytest.approx(values.sum())
    with pytest.raises(ValueError, match="no bucket for nan"):
        together.record_all("reward/value", np.array([0.5, math.nan]), component="x")
    with pytest.raises(ValueError, match="not a histogram"):
        together.record_all("reward/component", values, component="x")


def test_a_clip_is_the_range_and_a_component_of_ones_own_has_none_without_it() -> None:
    clipped = {"length": RewardTerm(1.0, "v", 0.2, 0.8), "mine": RewardTerm(1.0, "v", -2.0, 2.0)}
    row = recorded(turns(clipped, length=[0.0, 0.1, 0.5, 0.8], mine=[-9.0, 0.0, 1.0, 2.0]))
    assert (
        row["reward/saturated{component=length,end=low}"],
        row["reward/saturated{component=length,end=high}"],
    ) == (0.5, 0.25)
    assert (
        row["reward/saturated{component=mine,end=low}"],
        row["reward/saturated{component=mine,end=high}"],
    ) == (0.25, 0.25)
    assert row["reward/component{component=length}"] == pytest.approx(0.35), "the mean is raw"
    assert not [
        key for key in recorded(turns(mine=[0.0, 1.0])) if key.startswith("reward/saturated")
    ]


def test_turns_with_other_terms_keep_their_places_and_their_own_ranges() -> None:
    """As where a run has a mix of its own for first turns, or read from a file, where every turn
    has terms for itself."""
    clipped = turns({"length": RewardTerm(1.0, "v", 0.2, 0.8)}, bleu=[0.1, 0.2], length=[0.0, 1.0])
    free = turns(length=[0.3, 0.6, 0.9])
    mixed = [free[0], clipped[0], free[1], clipped[1], free[2]]
    for some in (mixed, [replace(turn, terms=dict(turn.terms)) for turn in mixed]):
        length, bleu = columns(some)["length"], columns(some)["bleu"]
        assert length.rows.tolist() == [0, 1, 2, 3, 4]
        assert length.raw.tolist() == [0.3, 0.0, 0.6, 1.0, 0.9]
        assert length.held.tolist() == [0.3, 0.2, 0.6, 0.8, 0.9]
        assert (length.low.tolist(), length.high.tolist()) == (
            [0.0, 0.2, 0.0, 0.2, 0.0],
            [1.0, 0.8, 1.0, 0.8, 1.0],
        )
        assert (bleu.rows.tolist(), bleu.raw.tolist()) == ([1, 3], [0.1, 0.2])


def test_what_a_worker_records_of_real_scoring() -> None:
    mix = RewardMix(bleu=None, cosine=None, length=Length(clip=(0.0, 0.5)), recall=Recall())
    rewards = Rewards(single=mix, cumulative=mix, long_term=mix)
    answered = [
        Turn(
            [2, 9],
            [10] * n,
            [0.0] * n,
            [10] * 10,
            "recall",
            (Fact("Rex", 0),) if n > 4 else (),
            answer="Rex",
        )
        for n in (2, 4, 6, 8)
    ]
    lost = Turn([2, 9], [10], [0.0], [-1])
    episode = Episode("e", "t", 0, (Turn([2, 9], [10, 3], [], [10, 3]), *answered, lost), 0)
    metrics = Metrics()
    record_rewards(metrics, judge([episode], rewards, np.eye(16, dtype=np.float32), ()))
    row = metrics.flush(1, "mrl")
    assert row["reward/turns"] == 4
    assert row["reward/failed_turns{reason=tokens}"] == 1
    assert row["reward/component{component=length}"] == pytest.approx(0.5)
    assert row["reward/saturated{component=length,end=high}"] == 0.5
    assert row["reward/saturated{component=recall,end=high}"] == 1.0


# --- the whole batch ------------------------------------------------------------------------------


def raised(some: Sequence[Turn]) -> list[tuple[str, str, float]]:
    return [(alarm.component, alarm.kind, alarm.figure) for alarm in alarms(columns(some))]


def test_a_component_that_does_not_vary_raises_an_alarm_from_sixteen_turns_on() -> None:
    assert raised(turns(bleu=[0.3] * 16, length=np.linspace(0.1, 0.9, 16))) == [
        ("bleu", "constant", pytest.approx(0.0, abs=1e-12))
    ]
    assert raised(turns(bleu=[0.3] * 15)) == []
    assert raised(turns(bleu=[*[0.3] * 15, None])) == []
    assert raised(turns(bleu=[*[0.3] * 15, 0.3 + 1e-4])) == []
    assert [kind for _, kind, _ in raised(turns(recall=[1.0] * 16))] == [
        "constant",
        "saturated_high",
    ]


def test_a_component_nearly_all_at_one_end_raises_an_alarm() -> None:
    assert raised(turns(length=[*[1.0] * 39, 0.5])) == [("length", "saturated_high", 0.975)]
    assert raised(turns(length=[*[0.0] * 39, 0.5])) == [("length", "saturated_low", 0.975)]
    assert raised(turns(length=[*[1.0] * 38, 0.5, 0.4])) == [], "95 % are not more than 95 %"
    assert raised(turns(length=[1.0, 0.0] * 20)) == [], "both ends are not one end"
    assert raised(turns(mine=[*[1.0] * 39, 0.5])) == []
    held = raised(turns({"mine": RewardTerm(1.0, "v", -1.0, 1.0)}, mine=np.linspace(1.5, 9, 40)))
    assert held == [("mine", "constant", 0.0), ("mine", "saturated_high", 1.0)], (
        "what counts does not vary, whatever the raw values do"
    )


def test_correlation_with_recall_is_pearsons_over_the_turns_that_have_both() -> None:
    rng = np.random.default_rng(2)
    recall = [None if i % 3 == 0 else float(rng.random() < 0.5) for i in range(60)]
    bleu = [None if i % 5 == 0 else float(rng.random() + (recall[i] or 0)) for i in range(60)]
    both = [(b, r) for b, r in zip(bleu, recall, strict=True) if b is not None and r is not None]
    figures = recall_correlations(columns(turns(bleu=bleu, recall=recall, length=[0.7] * 60)))
    assert figures == {"bleu": pytest.approx(np.corrcoef(np.array(both).T)[0, 1])}
    assert 0.5 < figures["bleu"] < 1
    against = recall_correlations(
        columns(turns(length=np.linspace(0, 1, 8), recall=np.linspace(1, 0, 8)))
    )
    assert against == {"length": pytest.approx(-1.0)}


def test_no_correlation_is_shown_where_there_is_none_to_speak_of() -> None:
    steps = np.linspace(0, 1, 7)
    assert recall_correlations(columns(turns(length=steps, recall=steps))) == {}, (
        "fewer than eight turns"
    )
    assert (
        recall_correlations(columns(turns(length=np.linspace(0, 1, 20), recall=[1.0] * 20))) == {}
    )
    assert recall_correlations(columns(turns(length=np.linspace(0, 1, 20)))) == {}
    assert recall_correlations(columns([])) == {}


def test_an_alarm_is_counted_every_iteration_and_logged_when_it_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    monitor = BatchMonitor(metrics)
    recall = [0.0, 1.0] * 10
    flat, varied = (
        turns(bleu=[0.25] * 20, recall=recall),
        turns(bleu=np.linspace(0, 1, 20), recall=recall),
    )
    with caplog.at_level(logging.WARNING):
        for some in (flat, flat, varied, flat):
            monitor.record(batch(some))
    row = metrics.flush(1, "mrl")
    assert row["reward/alarms{component=bleu,kind=constant}"] == 3
    assert row["reward/recall_correlation{component=bleu}"] == pytest.approx(
        np.corrcoef(recall, np.linspace(0, 1, 20))[0, 1]
    )
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith(
        "reward component bleu: constant, standard deviation 0.0e+00 over 20 turns"
    )


def test_turns_without_a_reward_are_left_out() -> None:
    metrics = Metrics()
    failed = [Turn([2], [3], [0.0], [3], failure="bleu: broken")] * 20
    BatchMonitor(metrics).record(batch([*failed, *turns(bleu=[0.5] * 15)]))
    BatchMonitor(metrics).record([])
    assert metrics.state() == {}


CONFIGS = Path(__file__).parents[2] / "configs"
EMBEDDING = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)


def conversations(strategy: Strategy, count: int) -> list[Episode]:
    """Each tells a value and asks for it twice, with other words between; answered with
    nonsense."""
    return [
        Episode(
            f"e{i}", f"t{i}", 0,
            (
                Turn([10, 11, 20 + i], [12, 13], [], [12, 13], query=f"my dog is Rex{i}",
                answer="oh nice"),
                *(
                    Turn(
                        [14, 15], [60], [0.0], [16, 17, 20 + i, 18], "recall",
                        (Fact(f"Rex{i}", 0),),
                        query="which dog?", answer="hm", reference=f"it is Rex{i} indeed",
                        reward=0.1,
                    )
                    for _ in range(2)
                ),
            ),
            0, strategy=strategy,
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["single", "cumulative", "long_term"])
@pytest.mark.parametrize(
    "mix",
    [
        "demo",
        "mostly_bleu",
        "mostly_bleu_0_to_10",
        "bleu_and_cosine",
        "bleu_and_cosine_symmetric",
        "bleu_and_cosine_0_to_10",
    ],
)
def test_a_mix_that_pays_copies_better_than_right_answers_raises_an_alarm(
    mix: str, strategy: Strategy, caplog: pytest.LogCaptureFixture
) -> None:
    files = (
        [CONFIGS / "demo.yaml"]
        if mix == "demo"
        else [CONFIGS / "demo.yaml", CONFIGS / "rewards" / f"{mix}.yaml"]
    )
    rewards = load_run(files).rewards
    metrics = Metrics()
    monitor = BatchMonitor(metrics)
    for _ in range(2):
        gains = copy_gains(conversations(strategy, 20), rewards, EMBEDDING, ())
        forms = ["topic_change", "long_range"] if strategy == "long_term" else ["standard"]
        assert [(gain.strategy, gain.form, gain.turns) for gain in gains] == [
            (strategy, form, SAMPLE) for form in forms
        ]
        monitor.record([], gains)
    row = metrics.flush(1, "mrl")
    if mix.startswith("bleu_and_cosine"):
        assert row["reward/alarms{component=total,kind=copies_pay}"] == 2
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("rewards: copies_pay, a copy of the saved interaction earns ")
        assert f"in the mean of {SAMPLE} turns" in said
    else:
        assert not [key for key in row if key.startswith("reward/alarms")]
        assert not caplog.records


def test_what_copies_earn_asks_no_function_and_a_handful_of_turns_raises_no_alarm() -> None:
    mine = FunctionReward(name="mine", path="nowhere.py:never", weight=9.0)
    mix = RewardMix(
        bleu=Bleu(reference=0, saved=1), cosine=None, length=None, recall=None, functions=(mine,)
    )
    rewards = Rewards(single=mix, cumulative=mix, long_term=mix)
    (few,) = copy_gains(conversations("cumulative", 7), rewards, EMBEDDING, ())
    (enough,) = copy_gains(conversations("cumulative", 8), rewards, EMBEDDING, ())
    assert few.copy > few.right
    assert copy_alarms([few]) == []
    assert copy_alarms([few, enough]) == [
        Alarm("total", "copies_pay", enough.copy - enough.right, 8)
    ]
    for status in ("failed", "unscored"):
        broken = replace(conversations("cumulative", 1)[0], strategy="backwards", status=status)
        assert copy_gains([broken], rewards, EMBEDDING, ()) == []
    only_functions = rewards.model_copy(
        update={"cumulative": mix.model_copy(update={"bleu": None})}
    )
    assert (
        copy_alarms(copy_gains(conversations("cumulative", 8), only_functions, EMBEDDING, ())) == []
    )
