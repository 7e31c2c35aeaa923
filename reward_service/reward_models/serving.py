"""Rewards by reward models: opened once per process, scoring all turns of a call in passes of
bounded size.

transformers runs the model in the reward worker itself, on a GPU where it has one. vLLM does where
it is asked for and installed: it reads text, so it cannot serve a reward model with short-term
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config.components import ModelReward
from common.episode import Turn
from common.failures import DataFailure, InputError
from common.models.vllm_release import beside_numba
from common.models.vllm_release import require_vllm as require_release
from common.storage.checkpoint import open_checkpoint
from reward_service.components.component import Outcome
from reward_service.reward_models.labels import label_scores, require_label
from reward_service.reward_models.model import (
    Dialogue,
    PreferenceModel,
    Reading,
    TextPreferenceModel,
    expected_and_std,
    fitting_config,
    from_folder,
    in_passes,
)
from reward_service.reward_models.versions import is_ours, require_version


def model_rewards(section: ModelReward, conversations: Sequence[Sequence[Turn]]) -> list[Outcome]:
    """The outcome of the last turn of each conversation, given the turns before it. Raises
    InputError where there is no such model."""
    model = open_model(section.path, section.serve)
    require_label(section.path, section, model.module.config, is_ours(section.path))
    outcomes: list[str | None] = []
    readings: list[Reading] = []
    for conversation in conversations:
        try:
            readings.append(model.read(dialogue(conversation)))
            outcomes.append(None)
        except DataFailure as misfit:
            outcomes.append(str(misfit))
    scored = iter(scores(section, model, readings))
    return [next(scored) if outcome is None else outcome for outcome in outcomes]


def dialogue(conversation: Sequence[Turn]) -> Dialogue:
    """The last turn after the turns before it, each with the answer that went to memory."""
    *before, last = conversation
    return Dialogue(tuple(turn.exchange for turn in before), last.query, last.answer)


def scores(
    section: ModelReward, model: PreferenceModel, readings: Sequence[Reading]
) -> list[tuple[float, float]]:
    """(reward, its standard deviation) of each reading. The reward is in [0, 1] where
    `section.unit`; the deviation is in levels whatever the reward is in, as in its source: an
    advantage is divided by 1 + σ of the levels 1…K (`ppo.doubt`)."""
    if not readings:
        return []
    with torch.inference_mode():
        logits = in_passes(model.logits, readings, section.batch_tokens)
    if section.label is not None:
        return [
            (value, 0.0) for value in label_scores(section, model.module.config, logits).tolist()
        ]
    values, stds = expected_and_std(logits)
    if section.unit and model.levels == 1:
        values = torch.sigmoid(values)
    elif section.unit:
        values = (values - 1) / (model.levels - 1)
    return list(zip(values.tolist(), stds.tolist(), strict=True))


@lru_cache(maxsize=4)
def open_model(path: str, serve: str) -> PreferenceModel:
    """The reward model of a run (its latest checkpoint), a checkpoint, a folder or a hub name,
    ready to score. Raises InputError, also where the path is pinned and another version is
    there."""
    place = require_version(path)
    if is_ours(place):
        checkpoint = open_checkpoint(place)
        with checkpoint.folder() as folder:
            return _serving(from_folder(checkpoint.where, folder), folder, serve)
    return _serving(from_folder(path, place), place, serve)


def require_model(section: ModelReward) -> None:
    """Refuse a reward model that is not there, whose weights do not fit it, or whose labels do not
    say which of them pays, without reading what weights hold. Raises InputError naming its
    path."""
    place = require_version(section.path)
    if is_ours(place):
        checkpoint = open_checkpoint(place)
        with checkpoint.folder() as folder:
            config = fitting_config(checkpoint.where, folder)
    else:
        config = fitting_config(section.path, place)
    require_label(section.path, section, config, is_ours(section.path))
    if section.serve == "vllm":
        require_vllm(section.path, reads_memory=config.model_type == "rxt_reward")


def require_vllm(where: str, reads_memory: bool) -> None:
    if reads_memory:
        raise InputError(
            where, "reads short-term memory, which vLLM cannot: serve it by transformers"
        )
    require_release("serve")


def _serving(model: PreferenceModel, folder: str | Path, serve: str) -> PreferenceModel:
    if serve == "vllm":
        return VllmPreferenceModel(model, str(folder))
    model.module.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    return model


class VllmPreferenceModel:
    """The same scores by vLLM's pooling runner, which batches requests of all lengths by itself."""

    def __init__(self, model: PreferenceModel, folder: str):
        require_vllm(folder, reads_memory=not isinstance(model, TextPreferenceModel))
        assert isinstance(model, TextPreferenceModel)
        self._text, self.levels, self.module = model, model.levels, model.module
        # In the checkpoint's own type: vLLM would halve float32, and rewards would depend on who
        # serves them.
        dtype = str(model.module.dtype).removeprefix("torch.")
        with beside_numba():
            from vllm import LLM, PoolingParams

            self._engine: Any = LLM(
                folder,
                runner="pooling",
                max_model_len=model.max_tokens,
                dtype=dtype,
                # Compiling takes half a minute, and on a CPU gains nothing.
                enforce_eager=not torch.cuda.is_available(),
            )
        # The raw logits: an activation would hide a scalar's size and a level's odds.
        self._parameters = PoolingParams(task="classify", use_activation=False)

    def read(self, dialogue: Dialogue) -> Reading:
        return self._text.read(dialogue)

    def logits(self, readings: Sequence[Reading]) -> Tensor:
        prompts = [{"prompt_token_ids": list(reading.tokens)} for reading in readings]
        outputs = self._engine.classify(prompts, pooling_params=self._parameters, use_tqdm=False)
        return torch.tensor([output.outputs.probs for output in outputs], dtype=torch.float32)

    def save_tokenizer(self, folder: Path) -> None:
        self._text.save_tokenizer(folder)
