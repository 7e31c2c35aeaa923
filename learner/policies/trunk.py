"""The last layers of a causal language model trained alone: the layers below them, its trunk, are
frozen and shared with the reference.

What is trained are the last layers, what the model has behind them (its last norm), and the output
head where it is not the embedding, too. The reference keeps copies of these and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from common.config.causal import CausalModel
from common.failures import InputError

KEY = "model.causal.trained_layers"


def trained_names(model: Any, settings: CausalModel) -> frozenset[str] | None:
    """Names of the parameters of a model that `trained_layers` lets learn; None where it is not
    set. Raises InputError where the model's layers are not found, or are not so many."""
    if settings.trained_layers is None:
        return None
    owner, name, layers = _layers(model)
    count = settings.trained_layers
    if isinstance(count, float):
        count = max(1, round(count * len(layers)))
    if count >= len(layers):
        raise InputError(
            KEY, f"is {count}, and the model has {len(layers)} layers; leave it out to train all"
        )
    known = list(dict(owner.named_children()))
    behind = [getattr(owner, each) for each in known[known.index(name) + 1 :]]
    trained = {id(p) for part in (*layers[-count:], *behind) for p in part.parameters()}
    trained |= {id(p) for p in model.get_output_embeddings().parameters()}
    trained -= {id(p) for p in model.get_input_embeddings().parameters()}
    return frozenset(name for name, p in model.named_parameters() if id(p) in trained)


def _layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the layers, their name in it, and the layers."""
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        (owner, name, child)
        for owner in model.base_model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(found) != 1:
        raise InputError(
            KEY,
            f"the layers of {type(model).__name__} are not found: it has {len(found)} lists of "
            f"{count} modules; train all of it, or adapters (lora)",
        )
    return found[0]


class SharedTrunk(nn.Module):
    """The model as it was when this was made: called with its own copies of the parameters that are
    trained, and with all others of the model itself. Has no parameters but the copies, under the
    names that they have in the model."""

    def __init__(self, model: Any, trained: frozenset[str]):
        super().__init__()
        self.shared = (model,)  # not a submodule: its weights are saved with the policy
        own = dict(model.named_parameters())
        for name in sorted(trained):
            *path, last = name.split(".")
            at: nn.Module = self
            for part in path:
                if part not in dict(at.named_children()):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            copied = nn.Parameter(own[name].detach().clone(), requires_grad=False)
            at.register_parameter(last, copied)

    def forward(self, **given: Any) -> Any:
        (model,) = self.shared
        held: dict[str, torch.Tensor] = dict(self.named_parameters())
        return functional_call(model, held, (), given)


def called(module: Any) -> Any:
    """The model whose `forward` a module calls."""
    return module.shared[0] if isinstance(module, SharedTrunk) else module
