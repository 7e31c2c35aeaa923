"""The update of PPO against `tests/plain_ppo.py`, term by term and gradient by gradient.

Two episodes made by hand go the whole way from scored turns to `.grad`. One starts from a memory
that an earlier episode left, the other from its own and holds a turn without a score.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from common.episode import Episode, Memory, Turn
from common.models.reactive.config import RxTConfig
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from tests.local_learner import LocalLearner
from tests.plain_ppo import Case, Outcome, answer_log_probs, plain_update
from tests.updates import mrl

TEMPERATURE = 0.8
COEFFICIENTS = {
    "entropy": 0.3,
    "kl": 0.2,
    "kl_target": 3.0,
    "kl_horizon": 10,
    "memory_change": 0.4,
}


def product_update(case: Case) -> Outcome:
    """What the learner makes of the same case."""
    learner = LocalLearner(
        copy.deepcopy(case.old_policy),
        copy.deepcopy(case.old_critic),
        case.reference,
        case.settings,
        case.temperature,
        case.reward_width,
    )
    experience = learner.credit(case.episodes)
    learner.policy.load_state_dict(case.policy.state_dict())
    learner.critic.load_state_dict(case.critic.state_dict())
    return Outcome(learner.update(experience), learner.gradients())


# --- the case -------------------------------------------------------------------------------------


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
    """Log-probs are the policy's own, some of them moved by hand: a ratio of theirs is clipped."""
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
    made = [
        Episode("1", "0-000000-00000", 7, whole, 0, status="scored"),
        Episode("2", "0-000000-00001", 8, going_on, 0, status="scored", initial_memory=carried),
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


def make_case(
    ppo: dict[str, Any] | None = None, freeze_encoder: bool = False, **shape: Any
) -> Case:
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "slots": 3, "max_tokens": 16}
    sizes |= {"query_heads": 2, "kv_heads": 1, "decoder_ff": 12, "encoder_ff": 12}
    config = RxTConfig(**sizes | {"initializer_range": 0.3, "initial_memory_std": 1.0} | shape)
    old_policy = shaken(ReactiveTransformer(config).eval(), 1, 0.1)
    old_critic = shaken(Critic.from_policy(old_policy), 2, 0.3)
    stage = mrl(
        ppo=COEFFICIENTS | (ppo or {}) | {"epochs": 1, "minibatches": 1, "value_clip": 0.1},
        freeze_encoder=freeze_encoder,
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


def assert_same(case: Case) -> Outcome:
    expected, found = plain_update(case), product_update(case)
    for name, value in expected.terms.items():
        assert found.terms[name] == pytest.approx(value, rel=2e-5, abs=2e-6), name
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            found.gradients[name].double(),
            gradient,
            rtol=1e-4,
            atol=2e-5,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )
    return expected


# --- the update -----------------------------------------------------------------------------------


@pytest.mark.parametrize("initial_memory", ["learned", "normal"])
@pytest.mark.parametrize("freeze_encoder", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize("bptt_turns", [1, 2, "all"])
def test_terms_and_gradients_are_those_of_plain_ppo(
    bptt_turns: int | str, freeze_encoder: bool, initial_memory: str
) -> None:
    case = make_case({"bptt_turns": bptt_turns}, freeze_encoder, initial_memory=initial_memory)
    expected = assert_same(case)
    frozen = [g for name, g in expected.gradients.items() if name.startswith("policy.encoder.")]
    assert any(gradient.any() for gradient in frozen) != freeze_encoder


@pytest.mark.parametrize(
    "alone",
    [
        {},
        {"kl": 50.0},
        {"kl": 50.0, "kl_estimator": "k3"},
        {"entropy": 50.0},
        {"memory_change": 50.0},
        {"whiten": False},
        {"doubt": True},
        {"discount": 0.0},
        {"kl": 1.0, "kl_target": 0.01},
    ],
    ids=str,
)
def test_each_term_has_the_weight_and_the_gradient_of_its_own(alone: dict[str, Any]) -> None:
    off = {"kl": 0.0, "kl_target": None, "entropy": 0.0, "memory_change": 0.0}
    assert_same(make_case(off | alone))


def test_experts_are_balanced_over_what_was_decoded() -> None:
    assert_same(make_case(experts=3, experts_per_token=2))


def test_the_case_shows_what_a_wrong_sign_or_mask_would_change() -> None:
    """Advantages of both signs, tokens and values clipped and not, and a KL that is not 0."""
    case = make_case()
    expected = plain_update(case)
    rewards = [turn.reward for episode in case.episodes for turn in episode.answered]
    assert rewards.count(None) == 1
    assert 0.2 < expected.terms["ppo/clip_fraction"] < 0.8
    assert 0 < expected.terms["ppo/value_clip_fraction"] < 1
    assert expected.terms["ppo/loss_kl"] > 0.01
    assert abs(expected.terms["ppo/explained_variance"]) > 0.01
    for alone in ("kl", "entropy", "memory_change"):
        other = plain_update(make_case({alone: 0.0}))
        moved = max(
            float((other.gradients[name] - gradient).abs().max())
            for name, gradient in expected.gradients.items()
        )
        assert moved > 0.01, alone
