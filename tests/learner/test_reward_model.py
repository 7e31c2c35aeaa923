"""The stage reward_model: what it learns, from what, and what is said of it afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from common.config.reward_stage import RewardModelStage
from common.config.run import Run
from common.data.preferences import Preference
from common.data.tokenizer import train_tokenizer
from common.models.reactive.auto import AutoModel
from common.models.reactive.module import write_model
from common.models.reactive.reward import RxTRewardModel
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from learner.evaluation.intervals import bootstrap
from learner.evaluation.preferences import (
    BINS,
    Outcomes,
    evaluate_reward_model,
    measure,
    pairs_of,
    report,
)
from learner.lora import is_adapter_or_head
from learner.parallel.group import Job, OneRank
from learner.rl.preference_losses import (
    EPSILON,
    bradley_terry_loss,
    choice_loss,
    discrete_loss,
    ranking_loss,
)
from learner.setup import newest
from learner.stages.reward_model import RewardModelObjective
from learner.stages.supervised import build_objective
from reward_service.normalization import from_json
from reward_service.reward_models.model import Dialogue, from_folder
from tests.local_preferences import POLITE, RUDE, preference_run, preferences, text_model
from tests.local_source import (
    comparable_rows,
    lively_model,
    prepared,
    processes,
    run_and_die,
    run_here,
    tiny_corpus,
    tiny_run,
)
from tests.reward_model_runs import STAGE


def trained(
    folder: Path, *stages: Any, **sections: Any
) -> tuple[Run, RunDirectory, dict[str, Any]]:
    run = preference_run(
        folder, *stages, learner={"checkpoint_every": 100, "log_every": 10}, **sections
    )
    directory, _ = run_here(run)
    return run, directory, json.loads(directory.read_text("reward_model.json"))


# --- what it learns -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"levels": 5}, {"ranking": "best"}], ids=["scalar", "discrete", "best"]
)
def test_a_reward_model_of_an_rxt_learns_which_answer_is_better(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    run, directory, found = trained(tmp_path, "joint_lm", STAGE | settings)
    assert found["accuracy"] == 1.0
    assert found["loss"] < 0.5 * found["constant_loss"]
    assert (found["pairs"], found["groups"]) == (20, 20)
    rows = [row for row in read_rows(directory) if "eval/preference_accuracy" in row]
    assert [row["step"] for row in rows] == [36, 66]
    with newest(directory).folder() as folder:
        assert isinstance(AutoModel.from_pretrained(folder), RxTRewardModel)
    again = evaluate_reward_model(directory.path(), run.data.eval[0])["preferences"]  # type: ignore[union-attr]
    assert again["with_history"]["loss"] == pytest.approx(found["loss"], abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["whole", "lora"])
def test_a_model_of_transformers_becomes_a_reward_model(
    tmp_path: Path, kind: str, lora: dict[str, Any] | None
) -> None:
    backbone = text_model(tmp_path / "backbone", kind)
    _, directory, found = trained(
        tmp_path, STAGE | {"backbone": backbone, "lora": lora, "max_tokens": 24}
    )
    assert found["accuracy"] == 1.0
    with newest(directory).folder() as folder:
        module = AutoModelForSequenceClassification.from_pretrained(folder)
        assert not any("lora" in name for name in load_file(folder / "model.safetensors")), (
            "adapters are merged"
        )
        model = from_folder("checkpoint", folder)
    assert module.config.num_labels == 1
    with torch.no_grad():
        better, worse = model.logits(
            [model.read(Dialogue((), "what about tea", f"{tone} tea")) for tone in (POLITE, RUDE)]
        )[:, 0]
    assert better > worse
    assert len(model.read(Dialogue((), "what about tea " * 30, "it is")).tokens) == 24, (
        "the length that it was trained with"
    )


def test_only_adapters_and_head_move_under_lora(tmp_path: Path) -> None:
    backbone = text_model(tmp_path / "backbone")
    stage = STAGE | {"backbone": backbone, "lora": {"targets": ["q_proj", "v_proj"]}, "steps": 3}
    _, directory, _ = trained(tmp_path, stage)
    before = load_file(tmp_path / "backbone" / "model.safetensors")
    with newest(directory).folder() as folder:
        after = load_file(folder / "model.safetensors")
    moved = {
        name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])
    }
    assert moved
    assert all("q_proj" in name or "v_proj" in name for name in moved)
    assert is_adapter_or_head("score.weight")


def test_memory_is_read_and_its_writer_stays_as_the_policy_left_it(tmp_path: Path) -> None:
    run = preference_run(tmp_path, STAGE | {"steps": 2})
    directory = prepared(run)
    policy = load_file(Path(newest(directory).where) / "model.safetensors")
    run_here(run)
    with newest(directory).folder() as folder:
        after, model = load_file(folder / "model.safetensors"), from_folder("checkpoint", folder)
    assert all(
        torch.equal(after[name], policy[name])
        for name in after
        if name.startswith(("embedding.", "encoder.", "memory_attention."))
    )
    assert any(
        not torch.equal(after[f"reader.{name[8:]}"], policy[name])
        for name in policy
        if name.startswith("encoder.")
    )
    said = [(), (("I like tea", "noted tea"),), (("I like milk", "noted milk"),)]
    with torch.no_grad():
        rewards = model.logits(
            [model.read(Dialogue(history, "what about tea", "it is")) for history in said]
        )[:, 0]  # type: ignore[arg-type]
    assert len(set(rewards.tolist())) == 3


# --- losses of a batch ----------------------------------------------------------------------------


def objective(tmp_path: Path, told: list[Preference], **settings: Any) -> RewardModelObjective:
    run = preference_run(tmp_path, STAGE | settings)
    built, _ = build_objective(Job(run, prepared(run), 0, "local"), newest(prepared(run)), 0)
    assert isinstance(built, RewardModelObjective)
    stage = run.stages[0]
    assert isinstance(stage, RewardModelStage)
    return RewardModelObjective(stage, built.preferred, told, told[:1], 0)


@pytest.mark.parametrize(
    "settings", [{}, {"levels": 4}, {"ranking": "best"}], ids=["scalar", "discrete", "best"]
)
def test_a_prompt_counts_as_one_whatever_number_of_answers_it_has(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    told = [*preferences(3, margin=0.7), *preferences(2, seed=1, answers=3)]
    built = objective(tmp_path, told, **settings)
    terms = {term.name: term for term in built.terms(range(5), 0, OneRank())}
    assert terms["train/loss_preference"].count == 5
    expected = 0.0
    for preference, readings in zip(told, built.readings, strict=True):
        logits = built.preferred.logits(readings).detach()
        if settings.get("levels"):
            better, worse, _ = pairs_of([len(readings)])
            expected += float(discrete_loss(logits[better], logits[worse]).mean())
        elif settings.get("ranking"):
            expected += float(choice_loss(logits[:, 0]))
        elif len(readings) == 2:
            expected += float(
                bradley_terry_loss(logits[:1, 0], logits[1:, 0], preference.margin).sum()
            )
        else:
            expected += float(ranking_loss(logits[:, 0]))
    assert float(terms["train/loss_preference"].sum.detach()) == pytest.approx(expected, abs=1e-4)
    centred = 0.0 if settings.get("levels") else built.settings.centering
    assert terms["train/loss_centering"].coefficient == centred


def test_a_killed_stage_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """With adapters and dropout: both must come out of a checkpoint as they went in."""
    backbone = text_model(tmp_path / "backbone", "bert")
    stage = STAGE | {
        "backbone": backbone,
        "lora": {"rank": 2, "dropout": 0.2},
        "steps": 8,
        "evaluate_every": 4,
    }
    straight = preference_run(tmp_path, stage)
    killed = straight.model_copy(update={"name": "killed"})
    run_here(straight)
    process = processes().Process(target=run_and_die, args=(killed.model_dump(), 5))
    process.start()
    process.join(timeout=150)
    run_here(killed)
    one, other = (RunDirectory(run.runs, run.name) for run in (straight, killed))
    assert comparable_rows(one) == comparable_rows(other)
    with newest(one).folder() as a, newest(other).folder() as b:
        for file in ("model.safetensors", "training.safetensors"):
            left, right = load_file(a / file), load_file(b / file)
            assert left.keys() == right.keys()
            assert [name for name in left if not torch.equal(left[name], right[name])] == []


# --- what is said of it ---------------------------------------------------------------------------


def test_the_report_of_pairs_worked_by_hand() -> None:
    wins = np.array([0.9, 0.8, 0.4, 0.7])
    found = report(
        Outcomes(np.array([2.0, 1.0, -0.5, 0.0]), wins, 1 - wins, ["a", "a", "c", "b"], 1)
    )
    assert (found.pairs, found.groups, found.constant_loss) == (4, 3, pytest.approx(math.log(2)))
    assert found.accuracy == 0.5, "a tie of rewards is no success"
    assert found.loss == pytest.approx(-np.log(wins + EPSILON).mean())
    # Confidences 0.9, 0.8, 0.6 and 0.7, of which the third took the wrong side.
    assert sorted(found.calibration) == [
        (pytest.approx(0.6), 0.0, 1),
        (pytest.approx(0.7), 1.0, 1),
        (0.8, 1.0, 1),
        (0.9, 1.0, 1),
    ]
    assert found.calibration_error == pytest.approx((0.6 + 0.3 + 0.2 + 0.1) / 4)
    assert BINS == 10


def test_folds_are_pooled_as_if_one_model_had_judged_all_pairs() -> None:
    rng = np.random.default_rng(0)
    differences, wins = rng.standard_normal(60), rng.uniform(0.1, 0.9, 60)
    groups = [f"group {i // 3}" for i in range(60)]
    whole = Outcomes(differences, wins, 0.9 - wins, groups, 10)
    first, second = (
        Outcomes(*(part[here] for part in whole[:4]), 10) for here in (slice(0, 24), slice(24, 60))
    )
    pooled = report(first.and_those(second))
    assert pooled == report(whole)
    assert (pooled.pairs, pooled.groups, pooled.constant_loss) == (
        60,
        20,
        pytest.approx(-math.log(9 / 20)),
    )


def test_pairs_of_one_prompt_do_not_make_a_result_surer() -> None:
    right = np.tile([1.0, 0.0, 1.0, 1.0], 25)
    alone = bootstrap(right[None], np.ones((1, 100)))
    clumped = bootstrap(right[None] * 10, np.full((1, 100), 10.0))
    assert clumped[0] == pytest.approx(alone[0])
    low, high = alone[0][0], alone[1][0]
    spread = 1.96 * math.sqrt(0.75 * 0.25 / 100)
    assert (low, high) == (
        pytest.approx(0.75 - spread, abs=0.015),
        pytest.approx(0.75 + spread, abs=0.015),
    )


def test_measured_over_two_ranks_is_measured_by_one(tmp_path: Path) -> None:
    built = objective(tmp_path, preferences(3))
    held = [*preferences(7, seed=3), *preferences(4, seed=4, answers=3)]
    shares: list[torch.Tensor] = []

    class Rank(OneRank):
        """One of two; the sum comes when both have handed in their part."""

        def __init__(self, rank: int):
            super().__init__()
            self.rank, self.size = rank, 2

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            shares.append(tensor)
            return tensor if self.rank == 0 else shares[0] + shares[1]

    measure(built.preferred, held, Rank(0))
    assert measure(built.preferred, held, Rank(1)) == measure(built.preferred, held, OneRank())


# --- in reinforcement learning --------------------------------------------------------------------


def test_mrl_learns_from_retention_and_quality_each_measured_in_its_own_spread(
    tmp_path: Path,
) -> None:
    tokenizer = train_tokenizer(tiny_corpus().texts, 400)
    judge = tmp_path / "judge"
    model = RxTRewardModel.from_policy(lively_model(tokenizer), 5)
    model.head.weight.data.normal_()  # a new one says the same of everything
    write_model(model, judge)
    tokenizer.save(judge)
    quality = {"name": "quality", "path": str(judge), "unit": False, "normalise": True}
    mix = {
        "bleu": None,
        "cosine": None,
        "length": {"normalise": True},
        "recall": {"normalise": True},
        "models": [quality],
    }
    changed = {}
    for doubt in (False, True):
        mrl = {
            "stage": "mrl",
            "episodes": 6,
            "curriculum": [{"name": "all", "iterations": 3, "max_steps": 3}],
            "ppo": {"doubt": doubt},
        }
        run = tiny_run(
            tmp_path,
            mrl,
            name=f"doubt-{doubt}",
            rewards=dict.fromkeys(("single", "cumulative", "long_term"), mix),
        )
        directory, (source,) = run_here(run)
        statistics = from_json(source.state().scorer)
        assert statistics.keys() == {"length", "quality", "recall"}
        assert 1 < statistics["quality"].mean < 5
        rows = read_rows(directory)
        assert all(
            1 < row["reward/component{component=quality,cohort=trained}"] < 5 for row in rows
        ), "raw values are reported"
        assert all(abs(row["objective/scores"]) < 3 for row in rows[1:]), (
            "totals are in standard deviations"
        )
        with newest(directory).folder() as folder:
            changed[doubt] = load_file(folder / "model.safetensors")["decoder.head.weight"]
    assert not torch.equal(changed[False], changed[True])
