"""Options of the first three stages: a beginning without the encoder, and what examples weigh."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from common.config.run import Run
from common.config.stages import SFT, JointLM, MemoryPretrain
from common.data.corpus import Corpus, corpus_of
from common.episode import Interaction, Row
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.parts import part_of
from common.storage.checkpoint import whole_checkpoints
from common.storage.run_directory import RunDirectory
from learner.checkpointing import checkpoint_model
from learner.parallel.group import OneRank
from learner.parallel.optimizer import LossTerm, combine
from learner.setup import newest
from learner.stages.joint_lm import JointLMObjective, pair_objective
from learner.stages.memory_pretrain import write_objective
from learner.stages.planning import writes
from learner.stages.possible import require_weighed_pairs
from learner.stages.stage import definition_of
from learner.training_state import TrainingState
from learner.unfreezing import Unfreezing
from tests.local_source import STAGES, StoppingRecorder, comparable_rows, run_here, tiny_run

DECODER = {"decoder", "embedding"}
ALL = DECODER | {"encoder", "memory_cross_attention"}
SEQUENCES = [[2, 5, 9, 11, 6, 12, 3], [2, 5, 10, 6, 13, 14, 3]]


def objective_of(**settings: Any) -> JointLMObjective:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 40, "width": 16, "heads": 2, "query_heads": 2}
    model = ReactiveTransformer(RxTConfig(kv_heads=2, initializer_range=0.3, **shape))
    stage = JointLM.model_validate({"stage": "joint_lm", "mask_probability": 0.5} | settings)
    return JointLMObjective(stage, model, SEQUENCES, [0, 0], 1)


def terms_at(objective: JointLMObjective, step: int) -> dict[str, LossTerm]:
    return {term.name: term for term in objective.terms([0, 1], step, OneRank())}


def test_a_decoder_alone_depends_on_no_encoder_and_is_not_asked_what_that_guessed() -> None:
    objective = objective_of(decoder_only_steps=3, neighbours=2)
    before = [terms_at(objective, step) for step in (2, 3)]
    for parameter in objective.model.encoder.parameters():
        with torch.no_grad():
            parameter.mul_(-2.0)
    after = [terms_at(objective, step) for step in (2, 3)]
    for name in ("train/loss_lm", "train/accuracy_lm"):
        assert before[0][name].count == 12
        assert torch.equal(before[0][name].sum, after[0][name].sum)
    assert not torch.allclose(before[1]["train/loss_lm"].sum, after[1]["train/loss_lm"].sum)
    encoders = [name for name in before[1] if name not in ("train/loss_lm", "train/accuracy_lm")]
    assert [before[0][name].count for name in encoders] == [0] * 4
    assert min(float(before[1][name].count) for name in encoders) > 0


def test_heads_beside_the_model_begin_with_the_encoder() -> None:
    objective = objective_of(decoder_only_steps=3, neighbours=2)
    names = [
        f"{prefix}.{name}"
        for prefix, module in objective.modules.items()
        for name, _ in module.named_parameters()
    ]
    heads = {name for name in names if not name.startswith("model.")}
    schedule = Unfreezing(objective.settings.phases, part_of, objective.beside)
    assert heads
    for done, expected in ((0, 0.0), (3, 1.0)):
        schedule.advance(done)
        assert {schedule.scale(name) for name in heads} == {expected}


def weights(model: ReactiveTransformer) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def moved(directory: RunDirectory) -> list[set[str]]:
    """Parts that changed in each step, by the checkpoints before and after it."""
    states = [
        weights(checkpoint_model(checkpoint)[0])
        for checkpoint in sorted(whole_checkpoints(directory), key=lambda each: each.step)
    ]
    return [
        {part_of(name) for name in one if not torch.equal(one[name], other[name])}
        for one, other in itertools.pairwise(states)
    ]


def beginning_run(folder: Path, name: str) -> Run:
    settings = STAGES["joint_lm"] | {"decoder_only_steps": 3, "mask_random": 0.1, "mask_keep": 0.1}
    learner = {"checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 9}
    return tiny_run(folder, settings, name=name, learner=learner)


def test_encoder_and_cross_attention_stand_still_at_the_beginning_and_a_resumed_run_agrees(
    tmp_path: Path,
) -> None:
    straight, _ = run_here(beginning_run(tmp_path, "straight"))
    assert moved(straight) == [DECODER] * 3 + [ALL] * 3
    rows = comparable_rows(straight)
    assert ["train/loss_masked_lm" in row for row in rows] == [False] * 3 + [True] * 3
    run = beginning_run(tmp_path, "stopped")
    for last in (2, 4):

        def stopping(run: Run, directory: RunDirectory, step: int, last: int = last) -> Any:
            recorder = StoppingRecorder(run, directory, step)
            recorder.stops_after = last
            return recorder

        run_here(run, make_recorder=stopping)
    resumed, _ = run_here(run)
    assert comparable_rows(resumed) == rows
    ours, theirs = (weights(checkpoint_model(newest(each))[0]) for each in (resumed, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_decoder_is_not_alone_again_once_the_encoder_has_learnt(tmp_path: Path) -> None:
    run = beginning_run(tmp_path, "stopped")

    def stopping(run: Run, directory: RunDirectory, step: int) -> Any:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = 4
        return recorder

    run_here(run, make_recorder=stopping)
    later = run.stages[0].model_copy(update={"decoder_only_steps": 5})
    with pytest.raises(InputError) as refused:
        run_here(run.model_copy(update={"stages": (later,)}))
    assert refused.value.where == "stages.joint_lm.decoder_only_steps"
    assert refused.value.what == (
        "is 5, and after 4 steps the encoder has begun to learn; put it back to what it was"
    )


@pytest.mark.parametrize("stage", ["joint_lm", "sft"])
def test_the_beginning_can_be_moved_while_it_lasts(stage: str) -> None:
    settings = JointLM if stage == "joint_lm" else SFT
    moved = settings.model_validate({"stage": stage, "decoder_only_steps": 5})
    require_resumable = definition_of(moved).require_resumable
    for done, phases in ((0, 0), (4, 1), (5, 2), (9, 0)):
        require_resumable(moved, TrainingState(0, stage, done, phases=phases))
    with pytest.raises(InputError, match="after 4 steps the encoder has begun to learn"):
        # It learnt from the first step on: there were no phases.
        require_resumable(moved, TrainingState(0, stage, 4, phases=0))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"decoder_only_steps": 9, "steps": 9}, "the stage is over after 9"),
        ({"mask_random": 0.7, "mask_keep": 0.4}, "is more than all of them"),
        ({"stage": "sft", "start_weight": 0, "middle_weight": 0}, "nothing would be learnt"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(
    settings: dict[str, Any], what: str
) -> None:
    kind = SFT if settings.get("stage") == "sft" else JointLM
    with pytest.raises(ValidationError, match=what):
        kind.model_validate({"stage": "joint_lm"} | settings)


def told(*queries: str) -> Row:
    opening, *rest = queries
    return Row(opening, "ok", tuple(Interaction(query, "ok") for query in rest))


def corpus(*pairs: str) -> Corpus:
    rows = [told("one", "two", "three"), told("two", "four")]
    return corpus_of(rows, rows, [], ["text"], [Interaction(query, "ok") for query in pairs])


def test_pairs_are_from_the_middle_where_they_follow_up_and_open_no_conversation() -> None:
    """One that opens a conversation elsewhere, and one of no conversation, can begin one."""
    assert corpus("one", "two", "three", "five").pairs_from_the_middle() == [False] * 2 + [
        True,
        False,
    ]
    own = corpus()
    assert own.pairs_from_the_middle() == [False, False, True, False, True]


def test_the_weights_of_sft_are_those_of_where_an_interaction_stands(tmp_path: Path) -> None:
    directory, _ = run_here(tiny_run(tmp_path))
    pairs, checkpoint = corpus("one", "three", "five"), newest(directory)
    stage = SFT(stage="sft", start_weight=0.25, middle_weight=2.0)
    assert pair_objective(stage, pairs, checkpoint, 0, 1)[0].weights == [0.25, 2.0, 0.25]
    assert pair_objective(SFT(stage="sft"), pairs, checkpoint, 0, 1)[0].weights is None


def test_weights_count_relative_to_each_other_however_small_they_are() -> None:
    """A batch that weighs less than one token learns as much as any other."""
    alike, light = objective_of(), objective_of()
    light.weights = [0.01, 0.01]
    found = [combine(each.terms([0, 1], 0, OneRank()), OneRank())[0] for each in (alike, light)]
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("name", "pairs", "what"),
    [
        ("middle_weight", ("three", "four"), "all of 2 interactions are from the middle"),
        ("start_weight", ("three", "four"), "none of 2 interactions begins a conversation"),
        ("start_weight", ("one", "five"), "all of 2 interactions begin conversations"),
        ("middle_weight", ("one", "five"), "none of 2 interactions is from the middle"),
    ],
)
def test_a_weight_that_weighs_nothing_against_anything_is_refused(
    name: str, pairs: tuple[str, ...], what: str, weight: float
) -> None:
    """The loss is a weighted mean: among interactions of one kind, weights change nothing."""
    stage = SFT.model_validate({"stage": "sft", name: weight})
    with pytest.raises(InputError, match=f"^{name}: is {weight:g}, and {what}"):
        require_weighed_pairs(stage, corpus(*pairs))
    require_weighed_pairs(stage, corpus("one", "three"))
    require_weighed_pairs(SFT(stage="sft"), corpus(*pairs))


def test_writes_of_a_conversation_are_as_many_as_the_stage_takes(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, STAGES["memory_pretrain"] | {"max_writes": 2})
    directory, _ = run_here(run)
    stage = run.stages[0]
    assert isinstance(stage, MemoryPretrain)
    rows = [told("a", "b", "c", "d"), told("a", "b")]
    conversations = corpus_of(rows, rows, [])
    objective, _ = write_objective(stage, conversations, newest(directory), 0, 1)
    assert [len(turns) for turns in objective.conversations] == [2, 2]
    whole = stage.model_copy(update={"max_writes": None})
    objective, _ = write_objective(whole, conversations, newest(directory), 0, 1)
    assert [len(turns) for turns in objective.conversations] == [4, 2]
    shape = RxTConfig()
    assert [writes(each, run, shape).batches[0].turns for each in (stage, whole)] == [2, 4]
