"""The last layers of a causal language model trained alone: the layers below them, its trunk, are
frozen and shared with the reference.

What is trained are the last layers, what the model has behind them (its last norm), and the output
head where it is not the embedding, too. The reference keeps copies of these and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
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


class Trunk:
    """The frozen layers of a model, and what they gave for the rows of the last batch that the
    reference read. They do not change, so whoever reads one of these rows again takes it from here:
    one pass through them serves the reference, the policy, and every epoch of the policy.

    trained: names of the parameters that are not frozen.
    """

    def __init__(self, model: Any, trained: frozenset[str]):
        self.trained = trained
        _, _, layers = _layers(model)
        own = {id(p) for name, p in model.named_parameters() if name in trained}
        self._frozen = [
            layer for layer in layers if own.isdisjoint(id(p) for p in layer.parameters())
        ]
        self._states: dict[tuple[int, ...], Tensor] = {}
        self._in_tuples = False
        """Whether a layer gives its output as the first of a tuple."""

    def forget(self) -> None:
        """Before another batch."""
        self._states.clear()

    @contextmanager
    def reading(self, rows: Sequence[Sequence[int]], width: int, keep: bool) -> Iterator[None]:
        """A block in which the model is called once. rows: ids of its tokens, which are padded
        behind to `width`. keep: whether what the layers give is kept."""
        keys = [tuple(row) for row in rows]
        with ExitStack() as undone:
            if all(key in self._states for key in keys):
                self._give(keys, width, undone)
            elif keep:
                hook = self._frozen[-1].register_forward_hook(
                    lambda _layer, _given, output: self._keep(keys, output)
                )
                undone.callback(hook.remove)
            yield

    def _give(self, keys: list[tuple[int, ...]], width: int, undone: ExitStack) -> None:
        """Let the layers return what is known of these rows."""
        first = self._states[keys[0]]
        states = first.new_zeros(len(keys), width, first.shape[-1])
        for row, key in zip(states, keys, strict=True):
            row[: len(key)] = self._states[key]
        given = (states,) if self._in_tuples else states
        for layer in self._frozen:
            # All of them: none reads what it is given, and the last one's output is what counts.
            layer.forward = lambda *_, **__: given
            undone.callback(delattr, layer, "forward")

    def _keep(self, keys: list[tuple[int, ...]], output: Any) -> None:
        self._in_tuples = isinstance(output, tuple)
        states = output[0] if self._in_tuples else output
        for key, row in zip(keys, states, strict=True):
            self._states[key] = row[: len(key)].detach().clone()


def trunk_of(model: Any, settings: CausalModel) -> Trunk | None:
    """None where `trained_layers` is not set. Raises InputError as `trained_names`."""
    trained = trained_names(model, settings)
    return None if trained is None else Trunk(model, trained)


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
        held: dict[str, Tensor] = dict(self.named_parameters())
        return functional_call(model, held, (), given)


def called(module: Any) -> Any:
    """The model whose `forward` a module calls."""
    return module.shared[0] if isinstance(module, SharedTrunk) else module
