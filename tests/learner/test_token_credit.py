"""Credit of single tokens: against published numbers, and against a plain computation in float64
from episodes to gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.algorithms import PPO
from common.config.mrl import MRL
from common.config.run import Run
from common.episode import Episode, Turn
from common.failures import InputError
from learner.parallel.group import Group, OneRank
from learner.parallel.optimizer import combine
from learner.rl.advantages import answer_advantages, token_advantages
from learner.rl.experience import Experience, TokenCredit
from learner.rl.rewards import shaped_rewards
from tests.plain_token_credit import CRITIC, MOVED, Plain
from tests.tiny_policy import TinyModel, on_ranks, tiny_episode, tiny_update
from tests.updates import mrl

# --- published numbers ----------------------------------------------------------------------------


def credited(
    case: dict[str, Any], credit: Callable[..., tuple[Tensor, Tensor]], gae_lambda: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Advantages, returns and mask of the actions of a case, with junk in the padding."""
    given = case["inputs"]
    longest = max(len(action["r"]) for action in given["actions"])
    shape = (1, len(given["actions"]), longest)
    rewards, values = (torch.full(shape, math.nan, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(shape, dtype=torch.bool)
    for k, action in enumerate(given["actions"]):
        size = len(action["r"])
        mask[0, k, :size] = True
        rewards[0, k, :size], values[0, k, :size] = (
            torch.tensor(action[key], dtype=torch.float64) for key in ("r", "v")
        )
    discounts = given["gamma_game"], given["gamma_token"]
    return *credit(rewards, values, torch.zeros(1), discounts, gae_lambda, mask), mask


def test_one_advantage_per_answer_is_against_the_mean_of_its_values(
    vectors: dict[str, Any],
) -> None:
    """With λ = 0, as in the source of the numbers."""
    case = vectors["cross_step"]["actionAvg"]
    advantages, returns, mask = credited(case, answer_advantages, 0.0)
    for k, action in enumerate(case["outputs"]["per_action"]):
        size = int(mask[0, k].sum())
        shared = [action["advantage"]] * size, [action["return"]] * size
        assert advantages[0, k, :size].tolist() == pytest.approx(shared[0], abs=1e-9)
        assert returns[0, k, :size].tolist() == pytest.approx(shared[1], abs=1e-9)
        assert not advantages[0, k, size:].any()
        assert not returns[0, k, size:].any()


def test_the_next_answers_first_value_stands_after_the_last_token(vectors: dict[str, Any]) -> None:
    case = vectors["cross_step"]["token"]
    advantages, returns, _ = credited(case, token_advantages, case["inputs"]["lam"])
    for k, action in enumerate(case["outputs"]["per_action"]):
        size = len(action["advantages"])
        assert advantages[0, k, :size].tolist() == pytest.approx(action["advantages"], abs=1e-9)
        assert returns[0, k, :size].tolist() == pytest.approx(action["returns"], abs=1e-9)
        assert not advantages[0, k, size:].any()
        assert not returns[0, k, size:].any()


def test_one_answer_has_generalised_advantages(vectors: dict[str, Any]) -> None:
    for name, case in vectors["gae"].items():
        given, expected = case["inputs"], case["outputs"]
        if name == "padded_batch":
            continue
        rewards, values = (
            torch.tensor(given[key], dtype=torch.float64)[None, None]
            for key in ("rewards", "values")
        )
        found, _ = token_advantages(
            rewards,
            values,
            torch.tensor([given["last_value"]], dtype=torch.float64),
            (1.0, given["gamma"]),
            given["lam"],
            torch.ones_like(rewards, dtype=torch.bool),
        )
        assert found[0, 0].tolist() == pytest.approx(expected["advantages"], abs=1e-9)


def test_each_token_pays_for_its_own_kl_and_the_last_one_has_the_score(
    vectors: dict[str, Any],
) -> None:
    for case in vectors["kl_reward"].values():
        given, expected = case["inputs"], case["outputs"]
        log_probs, size = given["logprobs"], len(given["logprobs"])
        turns = (Turn([1], [2], [], []), Turn([1], [2] * size, log_probs, []))
        one = torch.ones(1, 1, dtype=torch.bool)
        nothing = torch.zeros(1, 1, size, dtype=torch.float64)
        held = TokenCredit(torch.ones_like(nothing).bool(), nothing, nothing, nothing, nothing)
        experience = Experience(
            [Episode("e", "t", 0, turns, 0)],
            one,
            one,
            torch.tensor([[given["score"]]], dtype=torch.float64),
            *[torch.zeros(1, 1)] * 2,
            torch.zeros(1),
            [[torch.tensor(given["ref_logprobs"], dtype=torch.float64)]],
            tokens=held,
        )
        section = PPO(credit="token", kl_in="reward")
        shaped = shaped_rewards(experience, section, given["beta"], lambda _: True, OneRank())
        assert shaped.tokens is not None
        assert shaped.tokens.rewards[0, 0].tolist() == pytest.approx(expected["rewards"], abs=1e-9)
        assert float(shaped.rewards) == pytest.approx(expected["total"], abs=1e-9)


# --- the whole path -------------------------------------------------------------------------------

SECTION = {"credit": "token", "kl": 0.3, "entropy": 0.1, "discount": 0.7, "value_clip": 0.3}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ppo", {"kl_in": "reward"}),
    ("ppo", {"kl_in": "loss", "whiten": False, "token_discount": 0.8, "gae_lambda": 0.6}),
    ("ppo", {"kl_in": "reward", "whiten_rewards": True, "population_variance": True}),
    ("ppo", {"kl_in": "reward", "doubt": True, "no_end_penalty": 0.4, "reward_clip": 0.6}),
    ("ppo", {"kl_in": "reward", "loss_mean": "answer_means", "clip": 0.05, "clip_high": 0.4}),
    ("ppo", {"kl_in": "reward", "whiten_over": "minibatch"}),
    ("a2c", {"kl_in": "reward"}),
    ("ppo", {"credit": "answer_mean", "kl_in": "reward"}),
    ("ppo", {"credit": "answer_mean", "whiten": False, "token_discount": 0.8, "gae_lambda": 0.6}),
]


def settings(algorithm: str, **section: Any) -> MRL:
    known = {key: value for key, value in SECTION.items() if algorithm == "ppo" or key[:3] != "val"}
    return mrl(episodes=5, algorithm=algorithm, **{algorithm: known | section})


def made_episodes() -> tuple[TinyModel, TinyModel, list[Episode]]:
    """The policy as it is now, the reference, and episodes of older weights: of unequal lengths,
    with one turn that has no score in the middle of one that was cut off."""
    older, reference = TinyModel(1), TinyModel(2)
    now = copy.deepcopy(older)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in now.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    made = []
    for place, turns in enumerate((3, 1, 2, 3, 2)):
        rows: list[tuple[Any, ...]] = []
        for k in range(turns):
            length = int(torch.randint(1, 6, (), generator=draw))
            answer = torch.randint(0, 6, (length,), generator=draw).tolist()
            reward = round(float(torch.rand((), generator=draw)), 3)
            rows.append(
                ([2, 1 + (place + k) % 5], answer, None if (place, k) == (3, 1) else reward)
            )
        episode = tiny_episode(place, older, rows)
        judged = [replace(turn, reward_std=0.5 * (k % 3)) for k, turn in enumerate(episode.turns)]
        cut_off = [3, 4] if place == 3 else []
        made.append(replace(episode, turns=tuple(judged), next_query_ids=cut_off))
    return now, reference, made


def update_of(
    stage: MRL, now: TinyModel, reference: TinyModel, made: list[Episode], group: Group | None
) -> tuple[Any, Any]:
    """An update and the experience of this rank's episodes, by a critic that has moved since."""
    update = tiny_update(stage, now, reference, group)
    assert update.critic is not None
    table = update.critic.module.weight
    table.data = torch.tensor(CRITIC)[:, None]
    mine = made if group is None else made[group.rank :: group.size]
    lived = update.evaluate(mine, [episode.batch_index for episode in mine])
    table.data = torch.tensor(MOVED)[:, None]
    return update, lived


def product(
    stage: MRL,
    now: TinyModel,
    reference: TinyModel,
    made: list[Episode],
    group: Group | None = None,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Gradients of the policy and of the critic, summed over ranks, and figures."""
    module = copy.deepcopy(now)
    update, lived = update_of(stage, module, reference, made, group)
    steps = []
    update._step = lambda trainer, terms, *_: (steps.append(terms), (0.0, 0.0))[1]
    update.step_policy(lived, 0, True)
    update.step_critic(lived, 0)
    for terms in steps:
        combine(terms, update.group)[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]
    critic = update.critic.module.weight.grad[:, 0]
    return update.group.sum(gradient), update.group.sum(critic), lived.figures


@pytest.mark.parametrize(("algorithm", "section"), CASES, ids=str)
def test_gradients_are_those_of_a_plain_computation(
    algorithm: str, section: dict[str, Any]
) -> None:
    stage, (now, reference, made) = settings(algorithm, **section), made_episodes()
    expected = Plain(stage, now, reference, made)
    policy, critic, figures = product(stage, now, reference, made)
    torch.testing.assert_close(policy, expected.policy_gradient(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(critic.double(), expected.critic_gradient(), rtol=1e-5, atol=1e-6)
    assert figures["objective/advantage"] == pytest.approx(expected.mean_advantage, abs=1e-6)


@pytest.mark.parametrize(("algorithm", "section"), CASES, ids=str)
def test_two_ranks_have_the_gradients_of_one(algorithm: str, section: dict[str, Any]) -> None:
    stage, (now, reference, made) = settings(algorithm, **section), made_episodes()
    alone = product(stage, now, reference, made)
    for found in on_ranks(2, lambda group: product(stage, now, reference, made, group)):
        torch.testing.assert_close(found[0], alone[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found[1], alone[1], rtol=1e-5, atol=1e-6)
        for name in ("objective/advantage", "objective/advantage_std"):
            assert found[2][name] == pytest.approx(alone[2][name], rel=1e-5)


# --- which way learning goes ----------------------------------------------------------------------


def test_the_token_that_earns_is_told_from_the_one_that_does_not() -> None:
    """The score is for the second token alone, and it becomes more probable; with a critic that
    has learnt what stands before, the first one is left where it was."""
    module = TinyModel(spread=0.0)
    stage = mrl(
        episodes=24,
        algorithm="ppo",
        optimizer={"learning_rate": 1.0},
        ppo={"credit": "token", "kl": 0.0, "epochs": 1, "minibatches": 1, "whiten": False}
        | {"critic_learning_rate": 0.1, "gae_lambda": 0.0},
    )
    update = tiny_update(stage, module)
    update.policy_trainer.settings = stage.optimizer.model_copy(update={"max_grad_norm": 9.0})
    for iteration in range(40):
        draw = torch.Generator().manual_seed(iteration)
        first = torch.randint(1, 3, (24,), generator=draw).tolist()
        made = []
        for i, one in enumerate(first):
            chances = module([1], [one, 0])[1].exp().detach()
            two = int(torch.multinomial(chances, 1, generator=draw))
            made.append(tiny_episode(i, module, [([1], [one, two], float(two == 3))]))
        lived = update.evaluate(made, list(range(24)))
        update.run(lived, list(range(24)), 24, iteration)
    for one in (1, 2):
        assert float(module([1], [one, 0])[1, 3].exp().detach()) > 0.4  # 1/6 before
    chances = module([1], [0])[0].exp().detach()
    assert float((chances[1] - chances[2]).abs()) < 0.1


# --- refusals -------------------------------------------------------------------------------------


def test_credit_of_tokens_is_refused_where_the_policy_has_no_such_values() -> None:
    stage = {
        "stage": "mrl",
        "curriculum": [{"name": "a", "iterations": 1, "max_steps": 1}],
        "ppo": {"credit": "token"},
    }
    refused = r"stages\.mrl gives credit to single tokens, of which a reactive policy"
    with pytest.raises(ValueError, match=refused):
        Run.model_validate({"name": "n", "data": {"kind": "synth"}, "stages": [stage]})


def test_a_reactive_policy_refuses_a_critic_of_tokens() -> None:
    from common.models.reactive.config import RxTConfig
    from common.models.reactive.model import ReactiveTransformer
    from learner.policies.reactive import ReactivePolicy

    shape = RxTConfig(vocab_size=16, width=16, layers=1, heads=2, query_heads=2, kv_heads=2)
    policy = ReactivePolicy(ReactiveTransformer(shape), OneRank())
    with pytest.raises(InputError, match="gives no values of single tokens"):
        policy.value_function(mrl(ppo={}).ppo.critic, tokens=True)
