"""Two episodes made by hand, and everything that an update by them depends on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from common.episode import Episode, Memory, Turn
from common.models.reactive.config import RxTConfig
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from tests.plain_ppo import Case, answer_log_probs
from tests.updates import mrl

TEMPERATURE = 0.8
COEFFICIENTS = {
    "entropy": 0.3,
    "kl": 0.2,
    "kl_target": 3.0,
    "kl_horizon": 10,
    "memory_change": 0.4,
}


def shaken(module: nn.Module, seed: int, by: float) -> Any:
    """A copy whose every parameter, zeros included, has moved a little."""
    moved = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return moved


def turn(query: list[int], answer: list[int], reward: float | None, **more: Any) -> Turn:
    more = {"reference_ids": [9, 3], "log_probs": [], "reward": reward} | more
    return Turn(query_ids=[2, 5, *query, 6], answer_ids=answer, **more)


def episodes(policy: ReactiveTransformer) -> list[Episode]:
    """The first was cut off. Log-probs are the policy's own, some of them moved by hand: ratios of
    theirs are clipped."""
    size = policy.config.layers * policy.config.slots * policy.config.width
    carried = Memory("stm", torch.linspace(-1.5, 1.0, size).sin().numpy().tobytes())
    whole = (
        turn([11, 12, 13], [14, 15, 3], None),
        turn([16], [17, 18, 19, 3], 0.9, reward_std=0.5),
        turn([20, 21], [22, 3], None, failure="timeout"),
        turn([23, 24, 25], [26], -0.4, teacher_forced=True, reference_ids=[31, 32, 33, 3]),
        turn([27, 28], [29, 11, 13, 3], 0.3, reward_std=1.5),
    )
    going_on = (
        turn([12], [30, 16, 3], None),
        turn([33, 34, 35, 36], [37, 3], 0.2, teacher_forced=True),
        turn([38], [21, 19, 17], 1.1, reward_std=0.25),
    )
    # The shorter one first: the learner sorts conversations by length.
    made = [
        Episode(
            "1",
            "0-000000-00000",
            8,
            going_on,
            0,
            status="scored",
            initial_memory=carried,
            next_query_ids=[2, 5, 22, 23, 6],
        ),
        Episode("2", "0-000000-00001", 7, whole, 0, status="scored"),
    ]
    moves = [0.0, 0.5, -0.6, 0.1, -0.05, 0.3, -0.4]
    exact = copy.deepcopy(policy).double()
    sampled = []
    for episode in made:
        turns = list(episode.turns)
        for k in range(1, len(turns)):
            found = answer_log_probs(exact, episode, k, TEMPERATURE)
            moved = [value + moves[(k + j) % 7] for j, value in enumerate(found)]
            turns[k] = replace(turns[k], log_probs=moved)
        sampled.append(replace(episode, turns=tuple(turns)))
    return sampled


def make_case(ppo: dict[str, Any] | None = None, trained: Sequence[str] = (), **shape: Any) -> Case:
    """trained: the parts that are trained; empty: all."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "slots": 3, "max_tokens": 16}
    sizes |= {"query_heads": 2, "kv_heads": 1, "decoder_ff": 12, "encoder_ff": 12}
    config = RxTConfig(**sizes | {"initializer_range": 0.3, "initial_memory_std": 1.0} | shape)
    old_policy = shaken(ReactiveTransformer(config).eval(), 1, 0.1)
    reads_memory = (ppo or {}).get("critic", {}).get("memory", False)
    old_critic = shaken(Critic.from_policy(old_policy, reads_memory), 2, 0.3)
    stage = mrl(
        ppo=COEFFICIENTS | (ppo or {}) | {"epochs": 1, "minibatches": 1, "value_clip": 0.1},
        unfreeze=[{"after": 0, "train": trained}] if trained else [],
        router_loss=0.5,
        optimizer={"max_grad_norm": 1e9},
    )
    return Case(
        episodes(old_policy),
        stage,
        TEMPERATURE,
        2.0,
        old_policy,
        old_critic,
        shaken(old_policy, 4, 0.02),
        shaken(old_critic, 5, 0.05),
        shaken(old_policy, 6, 0.05),
    )
