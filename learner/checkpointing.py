"""State that a rank needs beyond the model to go on exactly where it was: optimiser moments,
auxiliary modules, and where the run stands. Nothing random is kept: every draw is a function of the
step.

All of it is safetensors and JSON beside the model in the checkpoint; nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable
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
from common.storage.run_directory import RunDirectory
from learner.lora import plain_state
from learner.parallel.optimizer import Trainer
from learner.training_state import TrainingState

TRAINING = "training.safetensors"


def save_training(
    directory: RunDirectory,
    step: int,
    model: nn.Module,
    write_tokenizer: Callable[[Path], None],
    state: TrainingState,
    keep: int,
    trainers: dict[str, Trainer] | None = None,
    modules: dict[str, nn.Module] | None = None,
) -> str:
    """Write a checkpoint that `transformers` opens as a model and `resume` as a training state;
    returns its path or URI.

    step: optimiser steps or iterations done over the whole run. modules: trained or frozen beside
    the model (heads, critic, reference).
    """

    def write(folder: Path) -> None:
        save_model(model, folder)
        write_tokenizer(folder)
        tensors: dict[str, Tensor] = {}
        for name, trainer in (trainers or {}).items():
            tensors |= {f"optimizer/{name}/{key}": value for key, value in trainer.state().items()}
        for name, module in (modules or {}).items():
            tensors |= {
                f"module/{name}/{key}": value.detach().cpu().contiguous()
                for key, value in untied_state(module).items()
            }
        save_file(tensors, folder / TRAINING)

    return save_checkpoint(directory, step, write, state.to_json(), keep)


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


def resume_training(
    folder: Path, trainers: dict[str, Trainer], modules: dict[str, nn.Module]
) -> None:
    """Put optimiser and modules back where `save_training` found them."""
    tensors = load_file(folder / TRAINING)
    for name, trainer in trainers.items():
        trainer.load_state(_under(tensors, f"optimizer/{name}/"))
    for name, module in modules.items():
        _load_untied(module, _under(tensors, f"module/{name}/"))


def take_over(folder: Path, modules: dict[str, nn.Module]) -> None:
    """Go on with modules that the stage before left under the same names: SFT trains the
    masked-token head of joint pre-training on."""
    tensors = load_file(folder / TRAINING)
    for name, module in modules.items():
        held = _under(tensors, f"module/{name}/")
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
