"""Training in bfloat16 and float16: weights stay float32, gradients are float32's to the tolerance
of the type, ranks agree on what they pass over, and a loss scale goes on where it was."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.config.causal import CausalModel
from common.config.run import Learner, Run
from common.config.stages import Optimizer
from common.failures import DataFailure, InputError
from common.telemetry.jsonl import read_rows
from learner.checkpointing import OPTIMIZER, TRAINING
from learner.parallel.group import Job, OneRank
from learner.parallel.optimizer import Trainer, combine_passes
from learner.parallel.precision import FIRST_SCALE, LOWEST_SCALE
from learner.setup import newest
from learner.stages.supervised import build_objective
from tests.causal_updates import lm_rl, make_update
from tests.learner.test_causal import episodes_of
from tests.learner.test_causal_pipeline import causal_run
from tests.learner.test_ranks import MIXTURE
from tests.local_preferences import preference_run
from tests.local_source import (
    StoppingRecorder,
    comparable_rows,
    prepared,
    processes,
    run_here,
    tiny_run,
)
from tests.tiny_causal import opened, write_model
from tests.tiny_policy import on_ranks
from tests.two_ranks import joined

BF16 = torch.bfloat16
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixture": MIXTURE,
    "delta": {"residual_gate": "delta"},
    "per number": {"residual_gate": "per_number", "memory_attention": "gated_self_interlayer"},
    "two reads": {"memory_reads": 2, "initial_memory": "learned"},
}


def short(**settings: Any) -> OneRank:
    return OneRank(dtype="bfloat16", **settings)


def gradients(run: Run, group: OneRank) -> dict[str, torch.Tensor]:
    """The gradient of the first batch of the only stage of a prepared run."""
    directory = prepared(run)
    torch.manual_seed(0)
    objective, _ = build_objective(Job(run, directory, 0, "local"), newest(directory), 0)
    stage: Any = run.stages[0]
    trainer = Trainer(objective.modules, stage.optimizer, 9, group, objective.trainable)
    chosen = range(min(6, objective.examples))
    passes = group.precision.each(objective.passes(chosen, 0, group))
    for loss in combine_passes(passes, group, {}):
        assert loss.dtype == torch.float32
        loss.backward()
    found = {name: p.grad for name, p in trainer.named.items() if p.grad is not None}
    assert {each.dtype for each in found.values()} == {torch.float32}
    return found


def near(exact: dict[str, torch.Tensor], found: dict[str, torch.Tensor], by: float) -> None:
    assert exact.keys() == found.keys()
    one, other = (torch.cat([g.flatten() for g in each.values()]) for each in (exact, found))
    assert not torch.equal(one, other), "it was computed in float32"
    assert float((one - other).norm()) <= by * float(one.norm())


def require_near_float32(run: Run) -> None:
    near(gradients(run, OneRank()), gradients(run, short()), 0.05)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("stage", ["joint_lm", "memory_pretrain", "reading", "memory_aware"])
def test_gradients_of_stages_are_those_of_float32_to_bfloat16(
    stage: str, variant: str, tmp_path: Path
) -> None:
    neighbours = {"neighbours": 2} if stage == "joint_lm" else {}
    settings = {"stage": stage, "batch_size": 6} | neighbours
    require_near_float32(tiny_run(tmp_path, settings, model=VARIANTS[variant]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradients_of_causal_stages_are_those_of_float32_to_bfloat16(
    family: str, tmp_path: Path
) -> None:
    settings = causal_run(tmp_path).model_dump(mode="json")
    settings["model"]["causal"]["path"] = str(write_model(tmp_path / family, family))
    settings["stages"] = [{"stage": "lm_sft", "batch_size": 6}]
    settings["learner"]["micro_batch_tokens"] = 16
    require_near_float32(Run.model_validate(settings))


def test_gradients_of_a_reward_model_are_those_of_float32_to_bfloat16(tmp_path: Path) -> None:
    require_near_float32(preference_run(tmp_path, {"stage": "reward_model", "levels": 4}))


@pytest.mark.parametrize("causal", [False, True], ids=["reactive", "causal"])
def test_a_run_in_bfloat16_learns_and_resumes_exactly(causal: bool, tmp_path: Path) -> None:
    optimizer = {"learning_rate": 3e-3, "warmup_fraction": 0.0}
    if causal:
        settings = causal_run(tmp_path).model_dump(mode="json")
        sft = {"stage": "lm_sft", "steps": 12, "batch_size": 6, "optimizer": optimizer}
        rl = {"stage": "lm_rl", "episodes": 6, "iterations": 2}
        settings["stages"] = [sft, rl]
        run = Run.model_validate(settings)
    else:
        sft = {"stage": "sft", "steps": 12, "batch_size": 16, "optimizer": optimizer}
        run = tiny_run(tmp_path, sft, "mrl")
    whole, _ = run_here(run.model_copy(update={"name": "whole"}), short())

    def stopping(run: Run, directory: Any, step: int) -> StoppingRecorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = 13
        return recorder

    stopped = run.model_copy(update={"name": "stopped"})
    run_here(stopped, short(), make_recorder=stopping)
    resumed, _ = run_here(stopped, short())
    assert comparable_rows(resumed) == comparable_rows(whole)
    rows = [row for row in read_rows(whole) if "sft" in row["stage"]]
    losses = [row["train/loss_lm"] for row in rows]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    first = next(row for row in read_rows(whole) if row["stage"] in ("mrl", "lm_rl"))
    assert 1e-5 < first["ppo/log_prob_max_difference"] < 0.5
    with newest(whole).folder() as folder:
        from safetensors.torch import load_file

        for file in ("model.safetensors", TRAINING, OPTIMIZER):
            tensors = load_file(folder / file)
            assert {t.dtype for t in tensors.values()} <= {torch.float32, torch.int64}


def test_a_causal_update_in_bfloat16_keeps_sums_in_float32(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "gpt2")
    found = []
    for group in (OneRank(), short()):
        model, held = opened(folder)
        causal = CausalModel.model_validate({"path": str(folder)})
        settings = lm_rl(ppo={"credit": "token", "kl": 0.1, "minibatches": 1, "epochs": 1})
        update = make_update(model, held, causal, settings, group)
        if not found:
            from learner.policies.table import CheckpointPolicy

            episodes = episodes_of(CheckpointPolicy("causal", model, held), 6)
        lived = update.evaluate(episodes, list(range(6)))
        assert lived.values.dtype == torch.float32
        assert all(each.dtype == torch.float32 for one in lived.reference for each in one)
        terms = update.policy_terms(lived)
        assert {term.sum.dtype for term in terms if term.coefficient} == {torch.float32}
        update.run(lived, list(range(6)), 6, 1)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    near(*found, by=0.1)


def test_two_ranks_in_bfloat16_take_the_step_of_one(tmp_path: Path) -> None:
    settings = causal_run(tmp_path).model_dump(mode="json")
    settings["stages"] = [{"stage": "lm_sft", "batch_size": 6}]
    run = Run.model_validate(settings)
    directory = prepared(run)
    job = Job(run, directory, 0, "local")

    def gradient(objective: Any, group: Any) -> dict[str, torch.Tensor]:
        trainer = Trainer(objective.modules, Optimizer(max_grad_norm=1e9), 9, group)
        mine = range(6)[group.rank :: group.size]
        passes = group.precision.each(objective.passes(mine, 0, group))
        trainer.update(combine_passes(passes, group, {}), 0)
        return {name: p.grad for name, p in trainer.named.items() if p.grad is not None}

    def on_rank(objective: Any, group: Any) -> dict[str, torch.Tensor]:
        group.precision = short().precision
        return gradient(objective, group)

    # Opened here: transformers cannot open two models in two threads at once.
    made = [build_objective(job, newest(directory), 0)[0] for _ in range(3)]
    alone = gradient(made[2], short())
    first, second = on_ranks(2, lambda group: on_rank(made[group.rank], group))
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name}: the ranks have parted"
    one, other = (torch.cat([g.flatten() for g in each.values()]) for each in (alone, first))
    assert float((one - other).norm()) <= 0.02 * float(one.norm())


# --- float16 --------------------------------------------------------------------------------------


def test_float16_without_a_gpu_is_refused_by_name(tmp_path: Path) -> None:
    from common.config.loader import load_run

    config = tmp_path / "run.yaml"
    config.write_text("name: a\ndata: {kind: synth}\nstages: [{stage: sft}]\n")
    with pytest.raises(InputError, match=r"learner.*dtype float16 is for GPUs.*gpus_per_rank is 0"):
        load_run([config], ["learner.dtype=float16"])
    load_run([config], ["learner.dtype=float16", "learner.gpus_per_rank=1"])
    assert Learner(dtype="bfloat16").dtype == "bfloat16"


def half_trainer(rank_group: Any, rate: float = 0.1) -> tuple[nn.Linear, Trainer]:
    """A trainer in float16, on a CPU, of one layer."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    settings = Optimizer(learning_rate=rate, warmup_fraction=0.0, max_grad_norm=1e9)
    return model, Trainer({"model": model}, settings, 9, rank_group)


def step(model: nn.Linear, trainer: Trainer, factor: float, number: int) -> None:
    with trainer.group.precision.autocast():
        # So small that it does not overflow at the first scale.
        loss = model(torch.full((2, 4), 0.5)).float().square().sum() / 100
    trainer.update([loss * factor], number)


def test_a_step_that_overflows_is_passed_over_and_the_scale_falls() -> None:
    model, trainer = half_trainer(OneRank(dtype="float16"))
    exact, plain = half_trainer(OneRank())
    step(model, trainer, 1.0, 0)
    step(exact, plain, 1.0, 0)
    torch.testing.assert_close(model.weight, exact.weight, rtol=0, atol=1e-4)
    before = model.weight.clone()
    step(model, trainer, 1e36, 1)
    assert trainer.passed_over
    assert trainer.gradient_norms(lambda name: "all") == {}
    assert torch.equal(model.weight, before)
    assert trainer.loss_scale is not None
    assert float(trainer.loss_scale.state()["scale"]) == FIRST_SCALE / 2
    step(model, trainer, 1.0, 2)
    assert not trainer.passed_over
    assert not torch.equal(model.weight, before)


def test_a_gradient_that_no_scale_makes_finite_is_an_error() -> None:
    model, trainer = half_trainer(OneRank(dtype="float16"))
    for number in range(int(math.log2(FIRST_SCALE / LOWEST_SCALE))):
        step(model, trainer, float("inf"), number)
        assert trainer.passed_over
    with pytest.raises(DataFailure, match=r"gradient of model\.weight is not finite"):
        step(model, trainer, float("inf"), 20)


def test_the_loss_scale_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, trainer = half_trainer(OneRank(dtype="float16"))
    for number, factor in enumerate((1.0, 1e36, 1.0)):
        step(model, trainer, factor, number)
    save_file(trainer.state(), tmp_path / "state.safetensors")
    other, resumed = half_trainer(OneRank(dtype="float16"))
    other.load_state_dict(model.state_dict())
    resumed.load_state(load_file(tmp_path / "state.safetensors"))
    for one, two in ((model, trainer), (other, resumed)):
        step(one, two, 1.0, 3)
    assert torch.equal(model.weight, other.weight)
    for key, value in trainer.state().items():
        assert torch.equal(value, resumed.state()[key]), key
    assert float(trainer.state()["loss_scale/scale"]) == FIRST_SCALE / 2
    assert int(trainer.state()["loss_scale/steps_since"]) == 2


def half_rank(rank: int, ranks: int, folder: Path) -> None:
    """One of two ranks, of which the second overflows in its second step."""
    with joined(rank, ranks, folder) as group:
        given: Any = group
        given.precision = OneRank(dtype="float16").precision
        model, trainer = half_trainer(group)
        skipped = []
        for number in range(4):
            step(model, trainer, 1e36 if (rank, number) == (1, 1) else 1.0, number)
            skipped.append(trainer.passed_over)
        found = (model.state_dict(), trainer.state(), skipped)
        (folder / f"rank-{rank}").write_bytes(pickle.dumps(found))


def test_a_step_that_overflows_on_one_rank_is_passed_over_on_all(tmp_path: Path) -> None:
    ranks = [processes().Process(target=half_rank, args=(r, 2, tmp_path)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=150)
        assert process.exitcode == 0
    first, second = (pickle.loads((tmp_path / f"rank-{rank}").read_bytes()) for rank in range(2))
    assert first[2] == second[2] == [False, True, False, False]
    for one, other in zip(first[:2], second[:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
