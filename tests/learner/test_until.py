"""Stages that end by what they measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from common.config.stages import SFT, JointLM, MemoryPretrain
from learner.parallel.group import OneRank
from learner.setup import newest
from learner.stages.until import WINDOW, Until, UntilState
from learner.summary import Summary
from learner.training_state import TrainingState
from tests.local_source import (
    STAGES,
    StoppingRecorder,
    comparable_rows,
    run_here,
    tiny_run,
)

RULE = {"until": {"train/accuracy_lm": 0.9}, "decay_steps": 10}
EASY = STAGES["sft"] | {"steps": 60, "until": {"train/loss_lm": 1e6}, "decay_steps": 5}
"""Holds as soon as there is a whole window."""


def rule(**more: Any) -> Until:
    return Until(SFT.model_validate({"stage": "sft", "steps": 100} | RULE | more))


def observe(until: Until, values: list[float], first: int = 1) -> None:
    for done, value in enumerate(values, first):
        until.observe(done, {"train/accuracy_lm": (value * 8, 8.0)}, OneRank())


def test_a_condition_holds_by_the_mean_of_the_last_steps() -> None:
    until = rule()
    observe(until, [1.0] * (WINDOW - 1))
    assert until.held_at is None, "fewer steps than a window"
    observe(until, [0.0], WINDOW)
    assert until.held_at == WINDOW  # 19 of 20
    unlucky = rule()
    observe(unlucky, [0.0] * 3 + [1.0] * (WINDOW - 1))
    assert unlucky.held_at == WINDOW + 1, "when two of the three have left the window"
    never = rule()
    observe(never, [0.89] * 100)
    assert (never.held_at, never.last_step) == (None, 100)


def test_a_loss_has_to_fall() -> None:
    until = Until(SFT(stage="sft", until={"train/loss_lm": 0.5}))
    for done, loss in enumerate([0.6] * WINDOW + [0.4] * WINDOW, 1):
        until.observe(done, {"train/loss_lm": (loss, 1.0)}, OneRank())
    assert WINDOW < (until.held_at or 0) <= 2 * WINDOW


def test_steps_that_measured_nothing_are_passed_over() -> None:
    """Such as those of `decoder_only_steps`, of the encoder: no loss is no loss of 0."""
    until = Until(SFT(stage="sft", until={"train/loss_masked_lm": 0.5}))
    for done in range(1, WINDOW + 1):
        until.observe(done, {"train/loss_masked_lm": (0.0, 0.0)}, OneRank())
    assert (until.held_at, until.means()) == (None, {})
    for done in range(WINDOW + 1, 2 * WINDOW + 1):
        until.observe(done, {"train/loss_masked_lm": (0.8, 2.0)}, OneRank())
    assert until.held_at == 2 * WINDOW


def test_steps_of_a_decoder_alone_do_not_count() -> None:
    """They measure the decoder, and the encoder has yet to learn."""
    until = rule(decoder_only_steps=30)
    observe(until, [1.0] * 30)
    assert (until.held_at, until.means()) == (None, {})
    observe(until, [1.0] * WINDOW, 31)
    assert until.held_at == 30 + WINDOW


def test_the_rate_stays_at_its_peak_until_the_condition_holds_and_decays_then() -> None:
    until = rule(optimizer={"warmup_fraction": 0.1, "final_fraction": 0.2})
    assert [until.rate_factor(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert until.rate_factor(80) == 1.0
    observe(until, [1.0] * 30)
    assert (until.held_at, until.last_step) == (20, 30)
    assert until.rate_factor(20) == 1.0
    assert until.rate_factor(25) == pytest.approx(0.6)
    assert 0.2 < until.rate_factor(29) < 0.25
    assert (until.has_ended(29), until.has_ended(30)) == (False, True)


def test_a_stage_ends_no_later_than_its_steps() -> None:
    until = rule(steps=22)
    observe(until, [1.0] * 20)
    assert until.last_step == 22


def test_what_came_of_the_condition_is_told_once() -> None:
    until = rule()
    observe(until, [1.0] * 20)
    assert until.sentence(20) == "sft: train/accuracy_lm 1 after 20 steps; it ends after 30"
    assert until.sentence(21) is None
    never = rule()
    observe(never, [0.5] * 100)
    assert never.sentence(99) is None
    assert never.sentence(100) == (
        "warning: sft did not reach train/accuracy_lm 0.9 in 100 steps (train/accuracy_lm 0.5)"
    )
    assert Until(SFT(stage="sft", steps=100)).sentence(100) is None


@pytest.mark.parametrize(
    ("until", "what"),
    [
        ({"train/acuracy_lm": 0.9}, "did you mean 'train/accuracy_lm'"),
        ({"train/accuracy_lm": 98.0}, "never 98; give a value above 0 and up to 1"),
        ({"train/loss_lm": 0.0}, "never 0; give a value above 0"),
        ({"train/accuracy_neighbours": 0.9}, "neighbours is 0"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(until: dict[str, float], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        JointLM(stage="joint_lm", until=until)
    with pytest.raises(ValidationError, match="train/memory_cosine"):
        MemoryPretrain(stage="memory_pretrain", until=until)


def test_a_run_goes_on_with_the_next_stage_where_one_has_ended_early(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, EASY, "memory_aware")
    directory, _ = run_here(run)
    rows = comparable_rows(directory)
    assert [row["step"] for row in rows if row["stage"] == "sft"][-1] == WINDOW + 5
    assert newest(directory).step == WINDOW + 5 + 6
    summary = Summary(run, directory)
    for index in (0, 1):
        summary.refresh(index)
    assert [stage["steps"] for stage in summary.value["stages"]] == [WINDOW + 5, 6]


@pytest.mark.parametrize("stopped_at", [7, WINDOW, WINDOW + 2, WINDOW + 5])
def test_a_stage_that_was_stopped_ends_where_it_would_have_ended(
    tmp_path: Path, stopped_at: int
) -> None:
    undisturbed, _ = run_here(tiny_run(tmp_path / "a", EASY, "memory_aware"))

    def stopping(*arguments: Any) -> StoppingRecorder:
        recorder = StoppingRecorder(*arguments)
        recorder.stops_after = stopped_at
        return recorder

    run = tiny_run(tmp_path / "b", EASY, "memory_aware")
    stopped, _ = run_here(run, make_recorder=stopping)
    state = TrainingState.of(newest(stopped))
    assert (state.done, state.ended) == (stopped_at, stopped_at == WINDOW + 5)
    run_here(run)
    assert comparable_rows(stopped) == comparable_rows(undisturbed)


def test_a_state_is_read_as_it_was_written() -> None:
    until = rule()
    observe(until, [0.5, 0.25])
    state = until.state()
    assert state == UntilState(((0.5,), (0.25,)))
    assert UntilState.from_json(state.to_json()) == state
    assert Until(SFT(stage="sft")).state() is None


def test_ranks_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoRanks(OneRank):
        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor + torch.tensor([[0.0, 8.0]])  # the other one had nothing right

    until = rule()
    until.observe(1, {"train/accuracy_lm": (8.0, 8.0)}, TwoRanks())
    assert until.means() == {"train/accuracy_lm": 0.5}


def test_a_batch_that_weighs_less_than_one_token_is_a_mean_too() -> None:
    until = rule()
    until.observe(1, {"train/accuracy_lm": (0.25, 0.5)}, OneRank())
    assert until.means() == {"train/accuracy_lm": 0.5}
