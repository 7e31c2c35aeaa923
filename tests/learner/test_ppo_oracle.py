"""The update of PPO against `tests/plain_ppo.py`, term by term and gradient by gradient.

Two episodes made by hand go the whole way from scored turns to `.grad`. One starts from a memory
that an earlier episode left, the other from its own and holds a turn without a score.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from common.models.reactive.parts import PARTS
from tests.hand_made import make_case
from tests.local_learner import LocalLearner
from tests.plain_ppo import Case, Outcome, answers_of, plain_update, value_beyond

MEMORY = ("memory_attention", "memory_cross_attention")


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


def assert_same(case: Case) -> Outcome:
    expected, found = plain_update(case), product_update(case)
    for name, value in expected.terms.items():
        assert found.terms[name] == pytest.approx(value, rel=2e-5, abs=2e-6), name
    assert found.gradients.keys() == expected.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            found.gradients[name].double(),
            gradient,
            rtol=1e-4,
            atol=1e-5 * max(1.0, largest),
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )
    return expected


# --- the update -----------------------------------------------------------------------------------


@pytest.mark.parametrize("initial_memory", ["learned", "normal"])
@pytest.mark.parametrize("trained", [(), MEMORY], ids=["free", "frozen"])
@pytest.mark.parametrize("bptt_turns", [1, 2, "all"])
def test_terms_and_gradients_are_those_of_plain_ppo(
    bptt_turns: int | str, trained: tuple[str, ...], initial_memory: str
) -> None:
    case = make_case({"bptt_turns": bptt_turns}, trained, initial_memory=initial_memory)
    expected = assert_same(case)
    others = ("policy.encoder.", "policy.embedding.", "policy.decoder.head.")
    frozen = [g for name, g in expected.gradients.items() if name.startswith(others)]
    assert any(gradient.any() for gradient in frozen) == (not trained)


@pytest.mark.parametrize("left", PARTS)
def test_what_is_frozen_does_not_change_the_gradients_of_the_rest(left: str) -> None:
    """The embedding learns through a frozen encoder, and the encoder through frozen memory."""
    assert_same(make_case({"bptt_turns": 2}, [part for part in PARTS if part != left]))
    assert_same(make_case({"bptt_turns": 2}, [left]))


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
        {"critic": {"memory": True}},
    ],
    ids=str,
)
def test_each_term_has_the_weight_and_the_gradient_of_its_own(alone: dict[str, Any]) -> None:
    off = {"kl": 0.0, "kl_target": None, "entropy": 0.0, "memory_change": 0.0}
    assert_same(make_case(off | alone))


def test_a_critic_that_reads_memory_has_another_value_for_every_query() -> None:
    """And of the query that would have come next, where an episode was cut off."""
    case = make_case({"critic": {"memory": True}})
    deaf = make_case({"critic": {"memory": True}})
    for look in deaf.old_critic.looks:
        torch.nn.init.zeros_(look.cross_attention.output.weight)
    values, without = (
        [answer.old_value for episode in each.episodes for answer in answers_of(each, episode)]
        + [value_beyond(each, each.episodes[0])]
        for each in (case, deaf)
    )
    assert all(abs(value - other) > 1e-2 for value, other in zip(values, without, strict=True))


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
    assert abs(expected.terms["critic/explained_variance"]) > 0.01
    for alone in ("kl", "entropy", "memory_change"):
        other = plain_update(make_case({alone: 0.0}))
        moved = max(
            float((other.gradients[name] - gradient).abs().max())
            for name, gradient in expected.gradients.items()
        )
        assert moved > 0.01, alone
