"""Training of the last layers alone: the trunk below them stays as it is and serves the reference,
which keeps copies of the trained layers and no more."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from common.config.causal import CausalModel
from common.episode import Episode
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from deploy.causal_memory import learner_bytes
from deploy.causal_shape import causal_shape
from learner.checkpointing import TRAINING
from learner.evaluation.prompts import reference_of
from learner.parallel.group import OneRank
from learner.policies.causal import CausalPolicy
from learner.policies.table import CheckpointPolicy, open_policy
from learner.policies.trunk import trained_names
from learner.setup import newest
from tests.causal_updates import lm_rl, make_update
from tests.learner.test_causal import episodes_of
from tests.learner.test_causal_pipeline import causal_run
from tests.local_source import StoppingRecorder, comparable_rows, run_here
from tests.tiny_causal import opened, write_model

FAMILIES: dict[str, tuple[str, str]] = {
    "gpt2": ("transformer.h.1.", "transformer.ln_f."),
    "gpt_neo": ("transformer.h.1.", "transformer.ln_f."),
    "gpt_neox": ("gpt_neox.layers.1.", "gpt_neox.final_layer_norm."),
    "llama": ("model.layers.1.", "model.norm."),
}
"""Beginnings of the names of the last of two layers, and of the last norm."""
UNTIED = {"gpt_neox": "lm_head.", "llama": "lm_head."}


def log_probs(policy: Any, episodes: list[Episode]) -> torch.Tensor:
    found = policy.log_probs(episodes, 1.0)
    return torch.cat([tokens for episode in found for tokens in episode])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_reference_is_a_full_copy_and_the_trunk_never_moves(
    family: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / family, family)
    model, held = opened(folder)
    causal = CausalModel.model_validate({"path": str(folder), "trained_layers": 1})
    rates = {"learning_rate": 0.05}
    settings = lm_rl(ppo={"credit": "token", "kl": 0.1, "epochs": 2}, optimizer=rates)
    update = make_update(model, held, causal, settings, OneRank())
    start = copy.deepcopy(model)
    full = CausalPolicy(start, held.memory, OneRank(), causal.value_head)
    episodes = episodes_of(CheckpointPolicy("causal", start, held), 6)
    update.run(update.evaluate(episodes, list(range(6))), list(range(6)), 6, 1)

    assert update.reference is not None
    expected = log_probs(full, episodes)
    torch.testing.assert_close(log_probs(update.reference, episodes), expected, rtol=0, atol=1e-6)
    assert float((log_probs(update.policy, episodes) - expected).abs().max()) > 1e-2

    before = dict(start.named_parameters())
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    beginnings = (*FAMILIES[family], *filter(None, (UNTIED.get(family),)))
    wanted = {name for name in before if name.startswith(beginnings)}
    assert moved == wanted == {name for name, _ in update.modules["reference"].named_parameters()}
    assert all(any(name.startswith(each) for name in moved) for each in beginnings)
    assert update.policy_trainer.named.keys() == {f"model.{name}" for name in moved}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_one_pass_through_the_trunk_serves_reference_and_policy(
    family: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / family, family)
    model, held = opened(folder)
    causal = CausalModel.model_validate({"path": str(folder), "trained_layers": 1})
    policy = CheckpointPolicy("causal", model, held, causal).trainable(lm_rl(), OneRank())
    reference = policy.frozen_copy()
    episodes = episodes_of(CheckpointPolicy("causal", copy.deepcopy(model), held), 6)
    layers = model.get_submodule(FAMILIES[family][0].rpartition(".1.")[0])
    read: list[int] = []
    next(layers[0].children()).register_forward_hook(lambda *_: read.append(1))

    def outcome(some: list[Episode]) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        batch = policy.evaluate(some, 1.0)
        weight = batch.flat([[turn.log_probs for turn in e.answered] for e in some])
        (batch.log_probs * weight).sum().backward()
        named = model.named_parameters()
        return torch.cat([p.grad.flatten() for name, p in named if policy.trains(name)])

    alone = [outcome(episodes), outcome(episodes[1:4])]
    assert read
    expected = log_probs(policy, episodes)
    log_probs(reference, episodes)
    read.clear()
    for before, some in zip(alone, (episodes, episodes[1:4]), strict=True):
        found = outcome(some)
        assert float((found - before).norm()) <= 1e-6 * float(before.norm())
    torch.testing.assert_close(log_probs(policy, episodes), expected, rtol=0, atol=1e-6)
    assert not read, "the trunk was read again"
    log_probs(reference, episodes[:2])
    read.clear()
    outcome(episodes)
    assert read, "rows of another batch are not kept"


def test_a_share_counts_layers_from_the_end(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "gpt2", changes={"n_layer": 6})
    model, _ = opened(folder)

    def layers(**settings: Any) -> set[int]:
        section = CausalModel.model_validate({"path": str(folder)} | settings)
        names = trained_names(model, section)
        assert names is not None
        return {int(name.split(".")[2]) for name in names if name.startswith("transformer.h.")}

    assert layers(trained_layers=0.33) == {4, 5}
    assert layers(trained_layers=0.01) == {5}
    assert layers(trained_layers=4) == {2, 3, 4, 5}
    whole = causal_shape(CausalModel.model_validate({"path": str(folder)}))
    part = causal_shape(CausalModel.model_validate({"path": str(folder), "trained_layers": 2}))
    run = causal_run(tmp_path, trained_layers=1)
    assert part.total == whole.total == whole.trained
    names = trained_names(model, CausalModel.model_validate({"path": "x", "trained_layers": 2}))
    assert names is not None
    assert part.trained == sum(p.numel() for n, p in model.named_parameters() if n in names)
    run = run.model_copy(update={"stages": run.stages[-1:]})  # reinforcement learning alone
    assert learner_bytes(run, part)["reference policy"] == 4 * part.trained


def test_what_cannot_be_trained_in_part_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "gpt2")
    model, _ = opened(folder)

    def section(**settings: Any) -> CausalModel:
        return CausalModel.model_validate({"path": str(folder)} | settings)

    with pytest.raises(ValidationError, match="lora and trained_layers both say which part"):
        section(trained_layers=1, lora={"rank": 4})
    for wrong in (0, 1.5, 0.0):
        with pytest.raises(ValidationError, match="trained_layers"):
            section(trained_layers=wrong)
    with pytest.raises(InputError, match=r"trained_layers: is 2, and the model has 2 layers"):
        trained_names(model, section(trained_layers=2))
    model.transformer.others = nn.ModuleList(nn.Identity() for _ in range(2))
    with pytest.raises(InputError, match="layers of GPT2LMHeadModel are not found: it has 2 lists"):
        trained_names(model, section(trained_layers=1))


def test_a_run_of_the_last_layers_resumes_exactly_and_opens_in_transformers(
    tmp_path: Path,
) -> None:
    run = causal_run(tmp_path, "whole", trained_layers=0.5)
    whole, _ = run_here(run)

    def stopping(run: Any, directory: RunDirectory, step: int) -> StoppingRecorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = 3
        return recorder

    stopped = run.model_copy(update={"name": "stopped"})
    directory, _ = run_here(stopped, make_recorder=stopping)
    inside = newest(directory)
    with inside.folder() as folder:
        kept = [key for key in load_file(folder / TRAINING) if key.startswith("module/reference/")]
        moments = {
            key.split("/")[2]
            for key in load_file(folder / TRAINING)
            if key.startswith("optimizer/policy/")
        }
    assert {key.removeprefix("module/reference/") for key in kept} == {
        name.removeprefix("model.") for name in moments
    }
    found = reference_of(inside, open_policy(inside), directory.run())
    resumed, _ = run_here(stopped)
    assert comparable_rows(resumed) == comparable_rows(whole)

    before, _ = opened(tmp_path / "model")
    after = AutoModelForCausalLM.from_pretrained(newest(whole).where)
    frozen = {name for name, p in before.named_parameters() if ".h.0." in name or ".wpe." in name}
    own = dict(after.named_parameters())
    same = {name for name, p in before.named_parameters() if torch.equal(p, own[name])}
    assert frozen | {"transformer.wte.weight"} == same
    # What rl began with: the weights that lm_sft left.
    sft = next(c for c in sorted((tmp_path / "whole" / "checkpoints").iterdir()) if "2" in c.name)
    left = AutoModelForCausalLM.from_pretrained(sft)
    assert found is not None
    for name, value in found.module.state_dict().items():
        assert torch.equal(value, left.state_dict()[name]), name
