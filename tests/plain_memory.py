"""What a memory model computes over a conversation, one sequence and one write at a time.

The references for tests of losses and gradients are made of this. It calls the model and shares
nothing else with the learner.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.models.layers.feed_forward import Routing
from common.models.reactive.model import ReactiveTransformer


def encode(model: ReactiveTransformer, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[1, layers, tokens, width] and the mask that goes with it."""
    one = torch.tensor([list(tokens)])
    mask = torch.ones_like(one, dtype=torch.bool)
    return model.encode(one, mask), mask


def memory_around_write(
    model: ReactiveTransformer,
    initial: Tensor,
    written: Sequence[Sequence[int]],
    depth: int | str,
) -> tuple[Tensor, Tensor]:
    """Memory before and after the last of some writes, [1, layers, slots, width]; gradients reach
    back `depth` writes."""
    memory = old = initial
    for index, tokens in enumerate(written):
        if depth != "all" and index == len(written) - int(depth):
            memory = memory.detach()
        encoded, mask = encode(model, tokens)
        old, memory = memory, model.remember(memory, encoded, mask)
    return old, memory


def distributions(
    model: ReactiveTransformer,
    query: Sequence[int],
    answer: Sequence[int],
    memory: Tensor,
    temperature: float = 1.0,
    routings: list[Routing] | None = None,
) -> list[Tensor]:
    """Log-probabilities of all tokens, at each token of the answer."""
    tokens = torch.tensor([[*query, *answer]])
    logits = model.decode(tokens[:, :-1], memory, routings)[0]
    result = []
    for position in range(len(answer)):
        scores = logits[len(query) + position - 1] / temperature
        result.append(scores - scores.exp().sum().log())
    return result


def router_loss(routed: list[list[Routing]], experts: int) -> Tensor:
    """Mean over layers of experts · Σ (share of choices) · (mean probability); `routed` holds for
    each sequence the routing of each layer."""
    layers = []
    for layer in zip(*routed, strict=True):
        probabilities = torch.cat([routing.probabilities for routing in layer])
        chosen = [int(e) for routing in layer for e in routing.chosen.flatten()]
        shares = [chosen.count(e) / len(chosen) for e in range(experts)]
        layers.append(
            torch.stack([experts * shares[e] * probabilities[:, e].mean() for e in range(experts)])
        )
    return torch.stack(layers).sum(1).mean()


def in_shape_of_memory(encoded: Tensor, slots: int) -> Tensor:
    """encoded [1, layers, tokens, width] → [1, layers, slots, width]: each slot is the mean of the
    tokens that its share of the sequence touches."""
    tokens = encoded.shape[2]
    parts = []
    for slot in range(slots):
        touched = [
            encoded[:, :, t]
            for t in range(tokens)
            if t * slots < (slot + 1) * tokens and (t + 1) * slots > slot * tokens
        ]
        parts.append(sum(touched[1:], touched[0]) / len(touched))
    return torch.stack(parts, dim=2)
