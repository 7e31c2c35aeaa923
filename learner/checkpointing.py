"""State that a rank needs beyond the model to go on exactly where it was: optimiser moments,
auxiliary modules, and where the run stands. Nothing random is kept: every draw is a function of the
step.

All of it is safetensors and JSON beside the model in the checkpoint; nothing is pickled. Moments
are most of it, and only a resume reads them: they are a file of the newest checkpoint alone.
Weights that the whole stage leaves as they are lie in the run once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.data.tokenizer import ConversationTokenizer
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.module import (
    RxTModule,
    read_config,
    read_model,
    read_model_type,
    write_model,
)
from common.storage.checkpoint import Checkpoint, save_checkpoint
from common.storage.frozen import FrozenFile, write_frozen
from common.storage.run_directory import RunDirectory
from learner.lora import is_adapter_or_head, plain_state
from learner.parallel.optimizer import Trainer
from learner.training_state import TrainingState

TRAINING, OPTIMIZER = "training.safetensors", "optimizer.safetensors"
REFERENCE, WITH_ADAPTERS = "reference", "with_adapters"
"""Modules beside a model whose weights, but for adapters and heads, a stage never changes."""


class StageState:
    """Contents of a stage's checkpoints beside the model, for a resume. name: the stage's. modules:
    trained or frozen (heads, critic, reference), by name."""

    def __init__(
        self, name: str, trainers: Mapping[str, Trainer], modules: Mapping[str, nn.Module]
    ):
        self.name, self.trainers, self.modules = name, trainers, modules
        self._frozen: FrozenFile | None = None

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Put modules and optimisers back where `save_training` found them. False where the
        checkpoint has no state of optimisers any more, so that they begin without moments.

        Raises InputError where the frozen weights are missing, or not those that were saved.
        """
        tensors = tensors_beside(checkpoint)
        for name, module in self.modules.items():
            _load_untied(module, _under(tensors, f"{name}/"))
        self._frozen = checkpoint.frozen
        with checkpoint.folder() as folder:
            if not (folder / OPTIMIZER).is_file():
                return False
            moments = load_file(folder / OPTIMIZER)
        for name, trainer in self.trainers.items():
            trainer.load_state(_under(moments, f"{name}/"))
        return True

    def write(self, folder: Path) -> None:
        """All but the frozen weights, into a checkpoint's folder."""
        kept = {name: value for name, value in self._tensors().items() if not is_frozen(name)}
        save_file(_copied(kept), folder / TRAINING)
        moments = {
            f"{name}/{key}": value
            for name, trainer in self.trainers.items()
            for key, value in trainer.state().items()
        }
        if self.trainers:
            save_file(moments, folder / OPTIMIZER)

    def frozen(self, run: RunDirectory) -> FrozenFile | None:
        """The frozen weights in the run, written where they are not there yet; None where the stage
        has none."""
        if self._frozen is not None and self._frozen.is_in(run):
            return self._frozen
        held = {name: value for name, value in self._tensors().items() if is_frozen(name)}
        if held:
            self._frozen = write_frozen(run, self.name, lambda path: save_file(_copied(held), path))
        return self._frozen

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, module in self.modules.items()
            for key, value in untied_state(module).items()
        }


def is_frozen(name: str) -> bool:
    """Whether a tensor beside the model, by its name `MODULE/TENSOR`, stays as it is for a whole
    stage: of a reference, or under adapters."""
    module, _, own = name.partition("/")
    return module == REFERENCE or (module == WITH_ADAPTERS and not is_adapter_or_head(own))


def tensors_beside(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Tensors of the modules beside the model, by their names `MODULE/TENSOR`. Raises InputError
    where frozen weights are missing, or not those that were saved."""
    with checkpoint.folder() as folder, checkpoint.frozen_file() as frozen:
        tensors = load_file(folder / TRAINING) if (folder / TRAINING).is_file() else {}
        return tensors | ({} if frozen is None else load_file(frozen))


def save_training(
    directory: RunDirectory,
    step: int,
    model: nn.Module,
    write_tokenizer: Callable[[Path], None],
    state: TrainingState,
    keep: int,
    beside: StageState,
) -> str:
    """Write a checkpoint that `transformers` opens as a model and `StageState.resume` as a training
    state; returns its path or URI.

    step: optimiser steps or iterations done over the whole run.
    """

    def write(folder: Path) -> None:
        save_model(model, folder)
        write_tokenizer(folder)
        beside.write(folder)

    # Before the checkpoint that names it: a kill in between leaves a file that nobody names.
    frozen = beside.frozen(directory)
    return save_checkpoint(directory, step, write, state.to_json(), keep, {OPTIMIZER}, frozen)


def save_model(model: Any, folder: Path) -> None:
    """As `from_pretrained` of `transformers` opens it; adapters are merged into the weights."""
    state = plain_state(model)
    if isinstance(model, RxTModule):
        write_model(model, folder, state)
    else:  # a reward model of transformers
        model.save_pretrained(folder, state_dict=state)


def load_model(where: str, folder: Path, expected: RxTConfig | None = None) -> ReactiveTransformer:
    """The model of a checkpoint folder; InputError naming `where` and the first dimension that is
    not as `expected`."""
    kind = read_model_type(where, folder)
    if kind != RxTConfig.model_type:
        reward = kind == "rxt_reward"
        raise InputError(
            where,
            "is a reward model, not a policy: it can be evaluated, and scores answers in MRL"
            if reward
            else f"is a {kind} model",
        )
    if expected is not None:
        config = read_config(ReactiveTransformer, folder)
        for key in SHAPE_KEYS:
            if getattr(config, key) != getattr(expected, key):
                raise InputError(
                    where,
                    f"this checkpoint has {key} = {getattr(config, key)}, the configuration "
                    f"{getattr(expected, key)}",
                )
    return read_model(ReactiveTransformer, where, folder)


def take_over(checkpoint: Checkpoint, modules: Mapping[str, nn.Module]) -> None:
    """Go on with modules that the stage before left under the same names: SFT trains the
    masked-token head of joint pre-training on."""
    if not modules:
        return
    tensors = tensors_beside(checkpoint)
    for name, module in modules.items():
        held = _under(tensors, f"{name}/")
        if held.keys() == untied_state(module).keys():
            _load_untied(module, held)


def untied_state(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a module by name, those that several names share by the first of them."""
    seen: set[tuple[int, torch.Size]] = set()
    state = {}
    for name, value in module.state_dict().items():
        place = (value.data_ptr(), value.shape)
        if value.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = value
    return state


def _load_untied(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `untied_state`; raises RuntimeError for names that do not fit."""
    own = module.state_dict()
    tied = own.keys() - untied_state(module).keys()
    module.load_state_dict({name: own[name] for name in tied} | state, strict=True)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors writes them."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


SHAPE_KEYS = (
    "vocab_size", "width", "layers", "heads", "query_heads", "kv_heads", "cross_query_heads",
    "cross_kv_heads", "memory_query_heads",
    "memory_kv_heads", "decoder_ff", "encoder_ff", "experts", "experts_per_token", "slots",
    "max_tokens", "memory_reads", "memory_attention",
    "residual_gate", "gate_activation", "gate_per_slot", "gate_stretch",
    "initial_memory",
)  # fmt: skip
"""Settings that two checkpoints must share to hold each other's weights."""


def checkpoint_model(
    checkpoint: Checkpoint, expected: RxTConfig | None = None
) -> tuple[ReactiveTransformer, ConversationTokenizer]:
    with checkpoint.folder() as folder:
        return load_model(checkpoint.where, folder, expected), ConversationTokenizer.load(folder)
