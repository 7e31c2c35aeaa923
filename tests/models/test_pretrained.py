"""Models of `transformers` whose weights do not fit, or that give no hidden states, are refused by
name: by a plan, and before anything trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from common.config.causal import CausalModel
from common.config.components import ModelReward
from common.config.reward_stage import RewardModelStage
from common.failures import InputError
from common.models.causal import open_causal
from deploy.causal_shape import causal_shape
from learner.stages.reward_model import backbone
from reward_service.reward_models.model import fitting_config, from_folder
from reward_service.reward_models.serving import open_model, require_model
from tests.local_preferences import text_model
from tests.tiny_causal import configs, tokenizer, write_model


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights in a folder."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def refusals(folder: Path) -> list[str]:
    """Of a policy, by a plan and by a run."""
    settings, said = CausalModel(path=str(folder)), []
    for opening in (causal_shape, open_causal):
        with pytest.raises(InputError) as caught:
            opening(settings)
        assert caught.value.where == str(folder)
        assert "\n" not in str(caught.value)
        said.append(str(caught.value))
    return said


@pytest.mark.parametrize("family", sorted(configs()))
def test_a_model_whose_weights_are_whole_opens(tmp_path: Path, family: str) -> None:
    settings = CausalModel(path=str(write_model(tmp_path, family)))
    assert causal_shape(settings).total == sum(
        p.numel() for p in open_causal(settings)[0].parameters()
    )


def test_a_policy_that_lacks_weights_is_refused_by_their_keys(tmp_path: Path) -> None:
    write_model(tmp_path)
    edit(tmp_path, lambda weights: weights.pop("transformer.h.1.mlp.c_fc.weight"))
    for said in refusals(tmp_path):
        assert "lack transformer.h.1.mlp.c_fc.weight, which its model has" in said
    edit(tmp_path, lambda weights: [weights.pop(key) for key in sorted(weights)[:9]])
    for said in refusals(tmp_path):
        assert "lack transformer.h.0.attn.c_attn.bias, " in said
        assert " and 7 more, which its model has" in said


def test_a_policy_whose_weights_have_other_shapes_is_refused_by_their_keys(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    key = "model.layers.0.mlp.up_proj.weight"
    edit(tmp_path, lambda weights: weights.update({key: torch.zeros(7, 32)}))
    for said in refusals(tmp_path):
        assert f"have other shapes than its model: {key} (7×32, the model 64×32)" in said


def test_a_file_of_weights_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for said in refusals(tmp_path):
        assert "is nothing that transformers opens" in said
    file.unlink()
    for said in refusals(tmp_path):
        assert "is nothing that transformers opens" in said


def test_a_reward_model_that_lacks_weights_is_refused_before_it_scores(tmp_path: Path) -> None:
    folder = Path(text_model(tmp_path / "whole", "bert", labels=("bad", "good")))
    section = ModelReward.model_validate({"name": "m", "path": str(folder), "label": "good"})
    require_model(section)
    edit(folder, lambda weights: weights.pop("classifier.weight"))
    for opening in (
        lambda: require_model(section),
        lambda: open_model(str(folder), "transformers"),
    ):
        with pytest.raises(
            InputError, match=r"lack classifier\.weight, which its model has"
        ) as told:
            opening()
        assert told.value.where == str(folder)


def test_a_new_reward_head_may_lack_weights_and_its_backbone_may_not(tmp_path: Path) -> None:
    for kind in ("llama", "bert"):
        folder = Path(text_model(tmp_path / kind, kind))
        assert from_folder(str(folder), folder, levels=10).levels == 10
    # A head of another size is made anew as well.
    scalar = text_model(tmp_path / "scalar", "bert", levels=1)
    assert from_folder(scalar, scalar, levels=10).levels == 10
    folder = tmp_path / "llama"
    edit(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    stage = RewardModelStage.model_validate(
        {"stage": "reward_model", "backbone": str(folder), "levels": 10}
    )
    for opening in (
        lambda: fitting_config(str(folder), folder, 10),
        lambda: backbone(stage, 0),
    ):
        with pytest.raises(InputError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
            opening()


class SilentConfig(LlamaConfig):
    model_type = "silent"


class SilentForCausalLM(LlamaForCausalLM):
    """Gives logits and keeps its hidden states."""

    config_class = SilentConfig

    def forward(self, *args: Any, **given: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=super().forward(*args, **given).logits)


def test_a_model_that_gives_no_hidden_states_is_refused_by_name(tmp_path: Path) -> None:
    AutoConfig.register("silent", SilentConfig, exist_ok=True)
    AutoModelForCausalLM.register(SilentConfig, SilentForCausalLM, exist_ok=True)
    shape = {
        key: value for key, value in configs()["llama"].to_dict().items() if key != "model_type"
    }
    SilentForCausalLM(SilentConfig(**shape)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="gives no hidden states") as told:
        open_causal(CausalModel(path=str(tmp_path)))
    assert told.value.where == str(tmp_path)
