"""Credit of single tokens and its losses, computed plainly: loops over episodes, turns and tokens,
in float64. It shares the policy's module with the learner, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.config.mrl import MRL
from common.episode import Episode, Turn
from tests.tiny_policy import TinyModel

Table = list[list[list[float]]]
"""A figure of each token, by episode and answered turn."""

CRITIC = [0.4, -0.2, 0.1, 0.5, 0.3, -0.1]
MOVED = [0.1, 0.25, -0.3, 0.1, 0.7, 0.15]
"""What the critic gives each token before the update, and in it."""


class Plain:
    """Token credit and losses in loops over episodes, turns and tokens."""

    def __init__(self, stage: MRL, now: TinyModel, reference: TinyModel, made: Sequence[Episode]):
        self.stage, self.section = stage, stage.algorithm_settings
        self.now, self.reference = now, reference
        self.turns: list[tuple[Turn, list[float]]] = []
        self.old_values: list[list[float]] = []
        self.advantages: list[list[float]] = []
        self.answer_returns: list[float] = []
        rewards = [[self._rewards(turn) for turn in episode.answered] for episode in made]
        if self.section.whiten_rewards:
            self._over_their_spread(rewards)
        for episode, held in zip(made, rewards, strict=True):
            self._credit(episode, held)
        self.returns = [
            [a + v for a, v in zip(*both, strict=True)]
            for both in zip(self.advantages, self.old_values, strict=True)
        ]
        for k, one in enumerate(self.answer_returns):
            self.returns[k] = [one] * len(self.returns[k])
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
            if section.credit == "answer_mean":
                advantages = [self._of_answer(episode, scored, number, beyond)] * len(held)
                self.answer_returns.append(advantages[0] + sum(values[:-1]) / len(held))
            for t in range(len(held) - len(advantages)):
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

    def _of_answer(
        self, episode: Episode, scored: list[tuple[Turn, list[float]]], number: int, beyond: float
    ) -> float:
        """Advantage of an answer by the mean of its values: a sum over all answers from it on."""
        section: Any = self.section

        def worth(k: int) -> float:
            if k == len(scored):
                return beyond
            before = self._before(scored[k][0])
            return sum(CRITIC[token] for token in before) / len(before)

        total, per_turn = 0.0, section.discount * section.token_discount
        for later in range(number, len(scored)):
            earned = sum(r * section.token_discount**t for t, r in enumerate(scored[later][1]))
            surprise = earned + per_turn * worth(later + 1) - worth(later)
            total += (per_turn * section.gae_lambda) ** (later - number) * surprise
        return total

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
