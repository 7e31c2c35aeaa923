"""The mixture of experts of a decoder's layer."""

from __future__ import annotations

import pytest
import torch

from common.models.layers.feed_forward import MixtureOfExperts


def lively_mixture(per_token: int) -> MixtureOfExperts:
    torch.manual_seed(0)
    layer = MixtureOfExperts(16, 24, experts=5, per_token=per_token)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@torch.no_grad()
def by_hand(layer: MixtureOfExperts, token: torch.Tensor) -> torch.Tensor:
    """One token through its experts, each a SwiGLU of its own."""
    probabilities = layer.router.weight.mul(token).sum(-1).softmax(-1)
    out = torch.zeros_like(token)
    chosen = sorted(range(len(probabilities)), key=lambda e: -float(probabilities[e]))[
        : layer.per_token
    ]
    for expert in chosen:
        value, gate = (layer.up[expert] @ token + layer.up_bias[expert]).chunk(2)
        result = layer.down[expert] @ (value * gate * gate.sigmoid()) + layer.down_bias[expert]
        share = (
            probabilities[expert]
            if layer.per_token == 1
            else probabilities[expert] / probabilities[chosen].sum()
        )
        out += share * result
    return out


@pytest.mark.parametrize("per_token", [1, 2, 5])
def test_a_token_goes_through_its_most_probable_experts(per_token: int) -> None:
    layer, tokens = lively_mixture(per_token), torch.randn(9, 16)
    expected = torch.stack([by_hand(layer, token) for token in tokens])
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_token", [1, 2])
def test_the_router_learns_from_the_loss(per_token: int) -> None:
    """Not from the load-balancing loss alone, with one expert per token as with several."""
    layer, tokens, wanted = lively_mixture(per_token), torch.randn(64, 16), torch.randn(64, 16)

    def loss() -> torch.Tensor:
        return (layer(tokens) - wanted).square().mean()

    loss().backward()
    gradient = layer.router.weight.grad
    assert gradient is not None
    assert gradient.norm() > 1e-3
    before = loss().item()
    with torch.no_grad():
        layer.router.weight -= 1e-3 * gradient / gradient.norm()
    assert loss().item() < before


@pytest.mark.parametrize("per_token", [1, 2])
def test_all_experts_at_once_give_what_chosen_experts_give(per_token: int) -> None:
    layer, tokens = lively_mixture(per_token), torch.randn(9, 16)
    with torch.no_grad():
        weights, chosen = layer.shares(tokens)[1:]
        torch.testing.assert_close(layer.by_all_experts(tokens, weights, chosen), layer(tokens))
