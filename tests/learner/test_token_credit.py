"""Credit of single tokens: against published numbers, and against a plain computation in float64
from episodes to gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.mrl import MRL
from common.config.run import Run
from common.episode import Episode, Turn
from common.failures import InputError
from learner.parallel.group import Group
from learner.parallel.optimizer import combine
from learner.rl.advantages import token_advantages
from tests.tiny_policy import TinyModel, on_ranks, tiny_episode, tiny_update
from tests.updates import mrl

Table = list[list[list[float]]]
"""A figure of each token, by episode and answered turn."""


# --- published numbers ----------------------------------------------------------------------------


def test_the_next_answers_first_value_stands_after_the_last_token(vectors: dict[str, Any]) -> None:
    case = vectors["cross_step"]["token"]
    given, expected = case["inputs"], case["outputs"]["per_action"]
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
    advantages, returns = token_advantages(
        rewards,
        values,
        torch.zeros(1),
        (given["gamma_game"], given["gamma_token"]),
        given["lam"],
        mask,
    )
    for k, action in enumerate(expected):
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
]
CRITIC = [0.4, -0.2, 0.1, 0.5, 0.3, -0.1]
MOVED = [0.1, 0.25, -0.3, 0.1, 0.7, 0.15]
"""What the critic gives each token before the update, and in it."""


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
                ([1 + (place + k) % 5, 2], answer, None if (place, k) == (3, 1) else reward)
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


class Plain:
    """Token credit and losses in loops over episodes, turns and tokens."""

    def __init__(self, stage: MRL, now: TinyModel, reference: TinyModel, made: Sequence[Episode]):
        self.stage, self.section = stage, stage.algorithm_settings
        self.now, self.reference = now, reference
        self.turns: list[tuple[Turn, list[float]]] = []
        self.old_values: list[list[float]] = []
        self.advantages: list[list[float]] = []
        rewards = [[self._rewards(turn) for turn in episode.answered] for episode in made]
        if self.section.whiten_rewards:
            self._over_their_spread(rewards)
        for episode, held in zip(made, rewards, strict=True):
            self._credit(episode, held)
        self.returns = [
            [a + v for a, v in zip(*both, strict=True)]
            for both in zip(self.advantages, self.old_values, strict=True)
        ]
        flat = [a for each in self.advantages for a in each]
        self.mean_advantage = sum(flat) / len(flat)
        if self.section.doubt:
            self.advantages = [
                [a / (1 + turn.reward_std) for a in each]
                for each, (turn, _) in zip(self.advantages, self.turns, strict=True)
            ]
        if self.section.whiten:
            self._whiten()

    def _before(self, turn: Turn) -> list[int]:
        return [turn.query_ids[-1], *turn.answer_ids[:-1]]

    def _rewards(self, turn: Turn) -> list[float]:
        section: Any = self.section
        if turn.reward is None:
            return []
        score = turn.reward - (section.no_end_penalty if turn.answer_ids[-1] != 0 else 0.0)
        if section.reward_clip is not None:
            score = min(max(score, -section.reward_clip), section.reward_clip)
        cost = section.kl if section.kl_in == "reward" else 0.0
        there = self.reference(turn.query_ids, turn.answer_ids).detach()
        found = [
            -cost * (old - float(there[i, token]))
            for i, (old, token) in enumerate(zip(turn.log_probs, turn.answer_ids, strict=True))
        ]
        found[-1] += score
        return found

    def _over_their_spread(self, rewards: Table) -> None:
        flat = [r for turns in rewards for each in turns for r in each]
        mean = sum(flat) / len(flat)
        size = len(flat) - (0 if self.section.population_variance else 1)
        spread = math.sqrt(sum((r - mean) ** 2 for r in flat) / size + 1e-8)
        for turns in rewards:
            for each in turns:
                each[:] = [(r - mean) / spread + mean for r in each]

    def _credit(self, episode: Episode, rewards: list[list[float]]) -> None:
        section: Any = self.section
        scored = [(t, r) for t, r in zip(episode.answered, rewards, strict=True) if r]
        beyond = CRITIC[episode.next_query_ids[-1]] if episode.truncated else 0.0
        for number, (turn, held) in enumerate(scored):
            values = [CRITIC[token] for token in self._before(turn)]
            following = scored[number + 1][0] if number + 1 < len(scored) else None
            after = beyond if following is None else CRITIC[following.query_ids[-1]]
            values.append(section.discount * after)
            advantages = []
            for t in range(len(held)):
                total = 0.0
                for later in range(t, len(held)):
                    surprise = (
                        held[later] + section.token_discount * values[later + 1] - values[later]
                    )
                    total += (section.token_discount * section.gae_lambda) ** (later - t) * surprise
                advantages.append(total)
            self.turns.append((turn, held))
            self.old_values.append(values[:-1])
            self.advantages.append(advantages)

    def _whiten(self) -> None:
        flat = [a for each in self.advantages for a in each]
        mean = sum(flat) / len(flat)
        size = len(flat) - (0 if self.section.population_variance else 1)
        spread = math.sqrt(sum((a - mean) ** 2 for a in flat) / size + 1e-8)
        self.advantages = [[(a - mean) / spread for a in each] for each in self.advantages]

    def policy_gradient(self) -> Tensor:
        section: Any = self.section
        module = copy.deepcopy(self.now)
        answers, entropy, kl = [], [], []
        for (turn, _), advantages in zip(self.turns, self.advantages, strict=True):
            rows = module(turn.query_ids, turn.answer_ids)
            there = self.reference(turn.query_ids, turn.answer_ids).detach()
            losses, distances = [], []
            for i, token in enumerate(turn.answer_ids):
                new, advantage = rows[i, token], advantages[i]
                if self.stage.algorithm == "a2c":
                    losses.append(-advantage * new)
                else:
                    high = section.clip if section.clip_high is None else section.clip_high
                    ratio = (new - turn.log_probs[i]).exp()
                    held = ratio.clamp(1 - section.clip, 1 + high)
                    losses.append(-torch.minimum(advantage * ratio, advantage * held))
                distances.append((new - there[i, token]) ** 2 / 2)
                entropy.append(-(rows[i].exp() * rows[i]).sum())
            size = len(losses) if section.loss_mean == "answer_means" else 1
            answers.append(sum(losses) / size)
            kl.append(sum(distances) / size)
        tokens = len(entropy)
        count = len(answers) if section.loss_mean == "answer_means" else tokens
        weight = section.kl if section.kl_in == "loss" else 0.0
        loss = sum(answers) / count + weight * sum(kl) / count
        (loss - section.entropy * sum(entropy) / tokens).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    def critic_gradient(self) -> Tensor:
        section: Any = self.section
        table = torch.tensor(MOVED).double().requires_grad_()
        losses = []
        for (turn, _), old, returns in zip(self.turns, self.old_values, self.returns, strict=True):
            for token, before, target in zip(self._before(turn), old, returns, strict=True):
                error = (table[token] - target) ** 2
                if self.stage.algorithm == "ppo":
                    held = before + (table[token] - before).clamp(
                        -section.value_clip, section.value_clip
                    )
                    error = torch.maximum(error, (held - target) ** 2)
                losses.append(error / 2)
        (sum(losses) / len(losses)).backward()
        assert table.grad is not None
        return table.grad


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
    with pytest.raises(ValueError, match=r"stages\.mrl\.ppo\.credit is token, and a reactive pol"):
        Run.model_validate({"name": "n", "data": {"kind": "synth"}, "stages": [stage]})


def test_a_reactive_policy_refuses_a_critic_of_tokens() -> None:
    from common.models.reactive.config import RxTConfig
    from common.models.reactive.model import ReactiveTransformer
    from learner.parallel.group import OneRank
    from learner.policies.reactive import ReactivePolicy

    shape = RxTConfig(vocab_size=16, width=16, layers=1, heads=2, query_heads=2, kv_heads=2)
    policy = ReactivePolicy(ReactiveTransformer(shape), OneRank())
    with pytest.raises(InputError, match="gives no values of single tokens"):
        policy.value_function(mrl(ppo={}).ppo.critic, tokens=True)
