"""Parts of a model that learn first, and parts that thaw later."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from common.config.run import Run
from common.config.stages import MemoryAware, Optimizer
from common.config.unfreeze import Phase
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.parts import PARTS, part_of
from common.models.reactive.unroll import TurnTokens
from common.storage.checkpoint import whole_checkpoints
from common.storage.run_directory import RunDirectory
from learner.checkpointing import checkpoint_model
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer, combine
from learner.setup import newest
from learner.stages.memory_aware import MemoryAwareObjective
from learner.training_state import TrainingState
from learner.unfreezing import Unfreezing, told
from tests.hand_made import make_case
from tests.local_source import STAGES, StoppingRecorder, comparable_rows, run_here, tiny_run
from tests.updates import make_update, mrl

MEMORY = ["memory_attention", "memory_cross_attention"]
REST = ["encoder", "decoder", "embedding"]


def phases(*settings: dict[str, Any]) -> tuple[Phase, ...]:
    return mrl(unfreeze=settings).unfreeze


def two(**later: Any) -> tuple[Phase, ...]:
    """Memory from the start, the rest later."""
    return phases({"after": 0, "train": MEMORY}, {"train": REST} | later)


def unfreezing(*schedule: Phase) -> Unfreezing:
    return Unfreezing(schedule, part_of)


# --- the schedule ---------------------------------------------------------------------------------


def test_a_phase_begins_after_its_steps_and_says_so_once() -> None:
    schedule = unfreezing(*two(after=2, learning_rate=0.3))
    assert schedule.scales() == dict.fromkeys(MEMORY, 1.0) | dict.fromkeys(REST, 0.0)
    found = [schedule.advance(done) for done in (1, 2, 3)]
    assert [len(begun) for begun in found] == [0, 1, 0]
    assert (
        told("mrl", 2, found[1]) == "mrl: after 2 steps encoder, decoder, embedding begin to learn"
    )
    assert schedule.scales() == dict.fromkeys(MEMORY, 1.0) | dict.fromkeys(REST, 0.3)
    assert schedule.scale("model.encoder.layers.0.attention.query.weight") == 0.3


def test_a_phase_begins_by_its_reward_or_its_steps_whichever_is_first() -> None:
    rewarded, late = (unfreezing(*two(after=5, reward=0.6)) for _ in range(2))
    assert [len(rewarded.advance(1, reward)) for reward in (0.59, None, 0.6)] == [0, 0, 1]
    assert not rewarded.advance(2, 0.1), "it goes on where the reward falls again"
    assert rewarded.begun == 2
    assert [len(late.advance(done, 0.5)) for done in (4, 5)] == [0, 1]
    never = unfreezing(*two(reward=0.6))
    assert not never.advance(10**6)


def test_phases_begin_in_their_order() -> None:
    schedule = unfreezing(
        *phases(
            {"after": 0, "train": MEMORY},
            {"reward": 0.6, "train": ["encoder"]},
            {"after": 3, "train": ["decoder"]},
        )
    )
    assert not schedule.advance(4, 0.5)
    assert [phase.train for phase in schedule.advance(5, 0.7)] == [("encoder",), ("decoder",)]
    both = unfreezing(
        *phases(
            {"after": 0, "train": MEMORY},
            {"after": 3, "train": ["encoder"]},
            {"reward": 0.6, "train": ["decoder"]},
        )
    )
    assert len(both.advance(3, 0.7)) == 2
    together = unfreezing(
        *phases({"after": 0, "train": ["encoder"]}, {"after": 0, "train": ["decoder"]})
    )
    assert together.begun == 2


def test_without_phases_everything_learns_whatever_its_name() -> None:
    assert unfreezing().scale("masked_lm.layers.0.weight") == 1.0


def test_a_part_that_no_phase_names_never_learns() -> None:
    assert unfreezing(*phases({"after": 0, "train": MEMORY})).scale("model.embedding.weight") == 0


def test_a_phase_that_has_begun_goes_on_after_a_resume_and_cannot_be_left_out() -> None:
    schedule = unfreezing(*two(reward=0.6))
    schedule.load(2, 4)
    assert schedule.begun == 2
    older = unfreezing(*two(after=3))
    older.load(0, 4)  # a checkpoint from before there were phases
    assert older.begun == 2
    with pytest.raises(InputError, match="unfreeze: has 1 phases, and 2 have begun"):
        unfreezing(*two(after=9)[:1]).load(2, 4)
    whole = unfreezing()
    whole.load(2, 4)
    assert (whole.begun, whole.scale("model.embedding.weight")) == (0, 1.0)


FIRST = {"after": 0, "train": MEMORY}


@pytest.mark.parametrize(
    ("schedule", "what"),
    [
        ([FIRST | {"train": ["encodr"]}], "'encodr' is no part of the model; did you mean 'enc"),
        ([FIRST | {"train": []}], "at least 1 item"),
        ([FIRST | {"after": 1}], "the first phase needs after: 0"),
        ([{"reward": 0.1, "train": MEMORY}], "the first phase needs after: 0"),
        ([FIRST | {"reward": 0.1}], "the first phase needs after: 0, and no reward"),
        ([FIRST, {"train": REST}], "never begins; give after, or reward"),
        ([FIRST, {"after": 3, "train": MEMORY[:1]}], "memory_attention is there twice"),
        ([FIRST | {"train": ["encoder", "encoder"]}], "encoder is there twice"),
        (
            [FIRST, {"after": 3, "train": ["encoder"]}, {"after": 2, "train": ["decoder"]}],
            "a phase after 2 follows one after 3",
        ),
        ([FIRST | {"learning_rate": 0}], "greater than 0"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(
    schedule: list[dict[str, Any]], what: str
) -> None:
    with pytest.raises(ValidationError, match=what):
        mrl(unfreeze=schedule)


def test_only_mrl_waits_for_a_reward() -> None:
    with pytest.raises(ValidationError, match="only MRL has a reward"):
        MemoryAware.model_validate(
            {"stage": "memory_aware", "unfreeze": [FIRST, {"reward": 0.5, "train": REST}]}
        )


# --- the optimiser --------------------------------------------------------------------------------


def small_model() -> ReactiveTransformer:
    torch.manual_seed(3)
    sizes = {"vocab_size": 30, "width": 16, "layers": 2, "heads": 2, "slots": 3, "max_tokens": 16}
    sizes |= {"query_heads": 2, "kv_heads": 1, "decoder_ff": 12, "encoder_ff": 12}
    return ReactiveTransformer(RxTConfig(**sizes | {"initializer_range": 0.3}))


def stepped(trainer: Trainer, model: ReactiveTransformer, steps: range) -> None:
    """Steps on a loss that pulls every parameter in a direction of its own."""
    for step in steps:
        moving = [p for p in model.parameters() if p.requires_grad]
        loss = sum((p * (i + 1 + step)).sum() + p.square().sum() for i, p in enumerate(moving))
        assert isinstance(loss, Tensor)
        trainer.update([loss], step)


def weights(model: ReactiveTransformer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Parts of which any parameter differs, in any bit."""
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def trained(trainer: Trainer) -> set[str]:
    return {part_of(name.removeprefix("model.")) for name in trainer.named}


def test_parts_thaw_without_moments_and_those_before_keep_theirs() -> None:
    model, schedule = small_model(), unfreezing(*two(after=3, learning_rate=0.25))
    rates = Optimizer(learning_rate=0.01, warmup_fraction=0.0, weight_decay=0.1)
    trainer = Trainer({"model": model}, rates, 8, OneRank(), schedule.scale)
    before = weights(model)
    stepped(trainer, model, range(3))
    assert changed(before, weights(model)) == set(MEMORY)
    assert trained(trainer) == set(MEMORY)
    assert all(p.grad is None for n, p in model.named_parameters() if part_of(n) in REST)
    kept = trainer.state()

    schedule.advance(3)
    trainer.select()
    found = trainer.state()
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    stepped(trainer, model, range(3, 5))
    assert changed(before, weights(model)) == set(PARTS)
    ages = {name.removeprefix("model."): age for name, age in trainer.state().items()}
    steps = {part_of(n): float(age) for n, age in ages.items() if n.endswith("/step")}
    assert steps == dict.fromkeys(MEMORY, 5.0) | dict.fromkeys(REST, 2.0)
    found_rates = {part_of(name.removeprefix("model.")): r for name, r in trainer.rates().items()}
    assert found_rates["encoder"] == pytest.approx(0.25 * found_rates["memory_attention"])


def test_a_resumed_optimiser_is_the_one_that_went_on() -> None:
    """In the phase after the thaw, whose parts stand between the others in the model's order."""
    one, schedule = small_model(), unfreezing(*two(after=2))
    rates = Optimizer(learning_rate=0.01, max_grad_norm=0.1)
    trainer = Trainer({"model": one}, rates, 8, OneRank(), schedule.scale)
    stepped(trainer, one, range(2))
    schedule.advance(2)
    trainer.select()
    stepped(trainer, one, range(2, 4))
    other, resumed = copy.deepcopy(one), unfreezing(*two(after=2))
    resumed.load(2, 4)
    again = Trainer({"model": other}, rates, 8, OneRank(), resumed.scale)
    again.load_state(trainer.state())
    for each, model in ((trainer, one), (again, other)):
        stepped(each, model, range(4, 6))
    assert changed(weights(one), weights(other)) == set()


def test_a_batch_that_reaches_no_trained_part_is_a_step_without_gradient() -> None:
    """One turn alone is answered from the memory of the start, which nothing wrote."""
    model = small_model()
    settings = MemoryAware.model_validate({"stage": "memory_aware", "unfreeze": [FIRST]})
    turn = TurnTokens([2, 5, 9, 6], [11, 3], [2, 5, 9, 6, 11, 3])
    objective = MemoryAwareObjective(settings, model, [[turn]], 1)
    schedule = unfreezing(*phases({"after": 0, "train": MEMORY[:1]}))
    trainer = Trainer({"model": model}, Optimizer(), 8, OneRank(), schedule.scale)
    loss, _ = combine(objective.terms([0], 0, OneRank()), OneRank())
    norm, _ = trainer.update([loss], 0)
    assert norm == 0.0
    assert math.isfinite(float(loss))


def test_an_update_thaws_by_what_was_earned_and_resumes_so() -> None:
    case = make_case()
    for threshold, thaws in ((0.41, True), (0.43, False)):
        schedule = [FIRST, {"reward": threshold, "train": REST}]
        update = make_update(copy.deepcopy(case.policy), mrl(unfreeze=schedule))
        begun = update.unfreeze(1, 0.42)
        assert bool(begun) == thaws
        assert trained(update.policy_trainer) == set(PARTS if thaws else MEMORY)
    resumed = make_update(copy.deepcopy(case.policy), mrl(unfreeze=schedule))
    resumed.resume_phases(2, 1)
    assert trained(resumed.policy_trainer) == set(PARTS)


# --- whole stages ---------------------------------------------------------------------------------

ONE_STEP = {"epochs": 1, "minibatches": 1}
"""Settings of an update whose figures are all from before it."""
LATER = {"train": REST, "learning_rate": 0.3}


def run_of(folder: Path, stage: str, name: str, *schedule: dict[str, Any]) -> Run:
    """Six steps of the stage, with a checkpoint and a row of metrics after each."""
    settings = STAGES[stage] | {"unfreeze": schedule}
    if stage == "mrl":
        settings["ppo"] = STAGES["mrl"]["ppo"] | ONE_STEP
    learner = {"checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 9}
    return tiny_run(folder, settings, name=name, learner=learner)


def moved(directory: RunDirectory) -> list[set[str]]:
    """Parts that changed in each step, by the checkpoints before and after it."""
    states = [
        weights(checkpoint_model(checkpoint)[0])
        for checkpoint in sorted(whole_checkpoints(directory), key=lambda each: each.step)
    ]
    return [changed(one, other) for one, other in itertools.pairwise(states)]


@pytest.mark.parametrize("stage", ["memory_aware", "mrl"])
def test_a_frozen_part_changes_in_no_bit_and_a_thaw_changes_no_loss(
    stage: str, tmp_path: Path
) -> None:
    frozen, _ = run_here(run_of(tmp_path, stage, "frozen", FIRST))
    thawed, _ = run_here(run_of(tmp_path, stage, "thawed", FIRST, LATER | {"after": 3}))
    assert moved(frozen) == [set(MEMORY)] * 6
    assert moved(thawed) == [set(MEMORY)] * 3 + [set(PARTS)] * 3
    own = ("train/gradient", "train/learning_rate", "train/trainable", "train/part_")
    alike = []
    for one, other in zip(comparable_rows(frozen), comparable_rows(thawed), strict=True):
        names = [name for name in one if not name.startswith(own)]
        assert any("loss" in name for name in names)
        alike.append(all(one[name] == other[name] for name in names))
    assert alike[:4] == [True] * 4, "the fourth step is the first one after the thaw"
    assert not any(alike[4:])
    size = [row["train/trainable_parameters"] for row in comparable_rows(thawed)]
    assert size[2] < size[3] == sum(p.numel() for p in newest_model(thawed).parameters())
    rates, memory = (
        [row[f"train/part_learning_rate{{part={part}}}"] for row in comparable_rows(thawed)]
        for part in ("encoder", "memory_attention")
    )
    assert min(memory) > 0
    assert rates == pytest.approx([0.0] * 3 + [0.3 * rate for rate in memory[3:]])


def newest_model(directory: RunDirectory) -> ReactiveTransformer:
    return checkpoint_model(newest(directory))[0]


def stopped_after(run: Run, last: int) -> RunDirectory:
    """The run, which was asked to stop in step number `last`."""

    def stopping(run: Run, directory: RunDirectory, step: int) -> StoppingRecorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = last
        return recorder

    return run_here(run, make_recorder=stopping)[0]


def test_a_reward_thaws_in_the_iteration_after_it_and_the_run_resumes_with_it(
    tmp_path: Path,
) -> None:
    """Every reward is enough; `after` would come later."""
    schedule = (FIRST, LATER | {"after": 5, "reward": -9.0})
    straight, _ = run_here(run_of(tmp_path, "mrl", "straight", *schedule))
    assert moved(straight) == [set(MEMORY)] + [set(PARTS)] * 5
    run = run_of(tmp_path, "mrl", "stopped", *schedule)

    for step in (1, 3):
        assert TrainingState.of(newest(stopped_after(run, step))).phases == 2
    resumed, _ = run_here(run)
    assert comparable_rows(resumed) == comparable_rows(straight)
    assert changed(weights(newest_model(resumed)), weights(newest_model(straight))) == set()
    assert moved(resumed)[-6:] == moved(straight)


def test_a_supervised_stage_resumes_in_any_phase(tmp_path: Path) -> None:
    schedule = (FIRST, LATER | {"after": 3})
    straight, _ = run_here(run_of(tmp_path, "memory_aware", "straight", *schedule))
    run = run_of(tmp_path, "memory_aware", "stopped", *schedule)
    for step in (2, 3, 4):
        stopped_after(run, step)
    resumed, _ = run_here(run)
    assert comparable_rows(resumed) == comparable_rows(straight)
    assert changed(weights(newest_model(resumed)), weights(newest_model(straight))) == set()


def test_a_state_from_before_there_were_phases_has_begun_none() -> None:
    state = TrainingState(1, "mrl", 3, phases=2)
    record = state.to_json()
    assert TrainingState.from_json(record) == state
    assert (state.phases_in(1), state.phases_in(2)) == (2, 0)
    del record["phases"]
    assert TrainingState.from_json(record).phases == 0
