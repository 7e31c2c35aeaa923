"""MRL over a curriculum that advances by what is measured, and the weights that it ends with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.mrl import MRL, CurriculumStep
from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.failures import InputError
from common.storage.checkpoint import (
    Checkpoint,
    checkpoint_name,
    mark_best,
    open_checkpoint,
)
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from learner.checkpointing import checkpoint_model
from learner.evaluation.curriculum import QUALITY, HeldOutCurriculum
from learner.evaluation.evaluate import evaluation_rows
from learner.evaluation.held_out import HeldOut
from learner.parallel.group import OneRank
from learner.policies.table import open_policy
from learner.recorder import Recorder
from learner.requirements import require_data, require_possible
from learner.setup import newest
from learner.training_state import RLState, TrainingState
from tests.local_source import (
    STAGES,
    StoppingRecorder,
    comparable_rows,
    prepared,
    run_here,
    tiny_run,
)

MEASURED = STAGES["mrl"] | {
    "evaluate_every": 1,
    "evaluate_conversations": 4,
    "curriculum": [
        {"name": "easy", "iterations": 5, "max_steps": 2, "times": 2}
        | {"until": {"objective/scores": -1.0}},
        {"name": "hopeless", "iterations": 5, "max_steps": 3, "patience": 2, "earlier": 0.3}
        | {"until": {"curriculum/exact": 0.999}, "reset_probability": 0.4},
        {"name": "last", "iterations": 1, "max_steps": 3, "learning_rate": 0.5},
    ],
}
FOLLOWING: dict[str, Any] = {"stage": "sft", "steps": 1, "batch_size": 4}


def state_of(checkpoint: Checkpoint) -> RLState:
    held = TrainingState.of(checkpoint).rl
    assert held is not None
    return held


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return checkpoint_model(checkpoint)[0].state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_advances_by_what_is_measured_and_resumes_exactly_at_every_iteration(
    tmp_path: Path,
) -> None:
    whole, _ = run_here(tiny_run(tmp_path, MEASURED, name="whole"))
    curriculum = state_of(newest(whole)).curriculum
    assert [(step.name, step.how) for step in curriculum.ended] == [
        ("easy", "reached"),
        ("hopeless", "given up"),
        ("last", "iterations"),
    ]
    assert curriculum.ended[0].iterations == 2
    rows = comparable_rows(whole)
    assert {row["run/curriculum_step"] for row in rows} == {0, 1, 2}
    halved = rows[-1]["train/learning_rate"] / rows[0]["train/learning_rate"]
    assert halved == pytest.approx(0.5)

    for stop in range(1, curriculum.done):

        def stopping(run: Run, directory: RunDirectory, step: int, at: int = stop) -> Recorder:
            recorder = StoppingRecorder(run, directory, step)
            recorder.stops_after = at
            return recorder

        run = tiny_run(tmp_path, MEASURED, name=f"stopped-{stop}")
        run_here(run, make_recorder=stopping)
        resumed, _ = run_here(run)
        assert state_of(newest(resumed)).curriculum == curriculum
        assert comparable_rows(resumed) == rows
        assert same(weights(newest(resumed)), weights(newest(whole)))


def test_the_stage_after_a_curriculum_that_ended_early_begins(tmp_path: Path) -> None:
    directory, _ = run_here(tiny_run(tmp_path, MEASURED, FOLLOWING))
    assert TrainingState.of(newest(directory)).stage_name == "sft"


@pytest.mark.parametrize(
    ("exact", "best"),
    [
        ([0.1, 0.2, 0.6, 0.3, 0.5], 2),
        ([0.5, 0.2, 0.4, 0.3, 0.4], 0),
        ([0.1, 0.2, 0.5, 0.4, 0.5], 4),
    ],
)
def test_a_stage_ends_with_the_weights_that_were_measured_to_be_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: list[float], best: int
) -> None:
    left = iter(exact)

    def measure(
        self: HeldOutCurriculum, step: CurriculumStep | None, metrics: Metrics
    ) -> dict[str, float]:
        return {QUALITY: next(left)}

    monkeypatch.setattr(HeldOutCurriculum, "measure", measure)
    stage = MEASURED | {"curriculum": [{"name": "all", "iterations": 4, "max_steps": 3}]}
    learner = {"checkpoint_every": 1, "log_every": 1}
    notes: list[str] = []

    class Noting(Recorder):
        def note(self, text: str) -> None:
            notes.append(text)

    run = tiny_run(tmp_path, stage, learner=learner | {"keep_checkpoints": 1})
    directory, _ = run_here(run, make_recorder=Noting)
    ended = newest(directory)
    held = state_of(ended).best
    assert held is not None
    assert (held.quality, held.step) == (exact[best], best)
    assert ended.step == 4
    named = open_checkpoint(directory.path("checkpoints/best"))
    assert named.step == best
    assert same(weights(ended), weights(named))
    # What was learnt after the best is another model, so the comparison could fail.
    every, _ = run_here(
        tiny_run(tmp_path, stage | {"evaluate_every": 0}, name="every", learner=learner)
    )
    assert same(weights(newest(every)), weights(ended)) == (best == 4)
    said = [note for note in notes if "ends with the weights" in note]
    assert len(said) == (best != 4)
    assert [note for note in said if "nothing that it learnt was better" in note] == (
        said if best == 0 else []
    )


def test_without_measurements_there_is_no_best_checkpoint(tmp_path: Path) -> None:
    directory, _ = run_here(tiny_run(tmp_path, "sft"))
    with pytest.raises(InputError, match="no best checkpoint was chosen"):
        open_checkpoint(directory.path("checkpoints/best"))


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ({"objective/scores": 1.01}, r"curriculum\.easy\.until: objective/scores is never 1\.01"),
        ({"objective/scores": 1.0}, None),
    ],
)
def test_a_threshold_that_no_answer_earns_is_refused(
    tmp_path: Path, until: dict[str, float], said: str | None
) -> None:
    steps = [MEASURED["curriculum"][0] | {"until": until}]
    run = tiny_run(tmp_path, MEASURED | {"curriculum": steps})
    if said is None:
        require_possible(run)
        return
    with pytest.raises(InputError, match=said):
        require_possible(run)


def test_measurements_of_an_environment_without_rows_are_refused(tmp_path: Path) -> None:
    game = {"kind": "custom", "path": "rollout.environments.guess_number:GuessNumber"}
    stage = MEASURED | {"curriculum": [{"name": "all", "iterations": 1, "max_steps": 2}]}
    with pytest.raises(InputError, match=r"stages\.mrl\.evaluate_every: plays held-out"):
        require_possible(tiny_run(tmp_path, stage, environment=game))


def test_a_rule_that_no_held_out_conversation_can_measure_is_refused(tmp_path: Path) -> None:
    steps = [
        {"name": "none", "iterations": 2, "max_steps": 9, "min_steps": 9}
        | {"until": {"curriculum/recall": 0.5}}
    ]
    run = tiny_run(tmp_path, MEASURED | {"curriculum": steps}, data={"steps": [1, 2]})
    corpus = load_corpus(run.data, run.seed)
    with pytest.raises(InputError, match=r"stages\.mrl\.evaluate_every: .* none of 6 does"):
        require_data(run, corpus)
    mixed = [*steps, {"name": "all", "iterations": 1, "max_steps": 2}]
    run = tiny_run(tmp_path, MEASURED | {"curriculum": mixed}, data={"steps": [1, 2]})
    with pytest.raises(InputError, match=r"stages\.mrl\.curriculum\.none\.until: .* none of 0"):
        require_data(run, corpus)


@pytest.mark.parametrize("carried", [False, True])
def test_without_facts_the_best_weights_have_the_most_words_of_the_references(
    tmp_path: Path, carried: bool
) -> None:
    """Of conversations that begin as episodes do: with memory that is carried where a step's is."""
    *steps, last = MEASURED["curriculum"]
    steps = [*steps, last] if carried else [last]
    run = tiny_run(tmp_path, MEASURED | {"curriculum": steps}, model={"initializer_range": 1.0})
    rows = [
        replace(row, interactions=tuple(replace(turn, facts=()) for turn in row.interactions))
        for row in load_corpus(run.data, run.seed).eval
    ]
    checkpoint = newest(prepared(run))
    held_out = HeldOut(open_policy(checkpoint), rows, rows)
    settings = run.stages[0]
    assert isinstance(settings, MRL)
    measured = HeldOutCurriculum(run, settings, held_out, OneRank()).measure(None, Metrics())
    chosen = evaluation_rows(rows, 4)
    found = {
        begins: held_out.figures(run, chosen, begins)["f1"].share()["all"]
        for begins in (False, True)
    }
    assert found[False] != found[True]
    assert measured == {QUALITY: pytest.approx(found[carried])}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_resumes_marks_the_best_of_its_checkpoint_or_measures_anew(
    tmp_path: Path, damaged: bool
) -> None:
    """As after a kill between a checkpoint and its mark, and where the best one is damaged."""
    stage = MEASURED | {"curriculum": [{"name": "all", "iterations": 3, "max_steps": 3}]}

    def stopping(run: Run, directory: RunDirectory, step: int) -> Recorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = 2
        return recorder

    run = tiny_run(tmp_path, stage)
    directory, _ = run_here(run, make_recorder=stopping)
    best = state_of(newest(directory)).best
    assert best is not None
    mark_best(directory, checkpoint_name(0))
    if damaged:
        for name in directory.names("checkpoints"):
            if name.startswith("step_") and name != newest(directory).name:
                directory.remove(f"checkpoints/{name}")
        state = newest(directory)
        manifest = json.loads(directory.read_text(f"checkpoints/{state.name}/manifest.json"))
        manifest["state"]["rl"]["best"] = [best.quality, 0]
        directory.write_json(f"checkpoints/{state.name}/manifest.json", manifest)
    run_here(run)
    ended = state_of(newest(directory)).best
    assert ended is not None
    marked = open_checkpoint(directory.path("checkpoints/best"))
    assert marked.step == ended.step >= (2 if damaged else best.step)
