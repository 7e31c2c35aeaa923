"""REINFORCE with a moving-average baseline (Williams 1992): no critic, no ratio, no clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.config.algorithms import Reinforce
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.advantages import generalized_advantages
from learner.rl.algorithms.algorithm import (
    Needs,
    finish_advantages,
)
from learner.rl.algorithms.terms import penalty_terms, score_function_term
from learner.rl.experience import Experience


class MovingBaseline:
    """The baseline is the average of the returns of all turns so far, over all ranks."""

    def __init__(self, settings: Reinforce, reward_width: float = 1.0):
        self.needs = Needs(settings.samples)
        self._settings = settings
        self._baseline, self._seen = 0.0, 0.0

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        settings, scored = self._settings, experience.scored
        nothing = torch.zeros_like(experience.rewards)
        # With λ = 1 and no values, advantages are the returns.
        returns, _ = generalized_advantages(
            experience.rewards, nothing, 0.0, experience.discounts(settings.discount), 1.0, scored
        )
        present = torch.where(scored, returns, 0.0).double()
        total, count = group.sum(torch.stack([present.sum(), scored.sum().double()])).tolist()
        before = self._baseline
        self._take_in(total, count)
        baseline = self._baseline if settings.baseline == "including" else before
        advantages = torch.where(scored, returns - baseline, 0.0)
        advantages, figures = finish_advantages(advantages, experience, settings, group)
        figures["reinforce/baseline"] = baseline
        return replace(experience, advantages=advantages, returns=returns, figures=figures)

    def _take_in(self, total: float, count: float) -> None:
        if not count:
            return
        decay = self._settings.baseline_decay
        self._seen += count
        # The first batch sets the average; a decay counts from the second on.
        share = count / self._seen if decay is None or self._seen == count else 1 - decay
        self._baseline += share * (total / count - self._baseline)

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        return [
            score_function_term("reinforce/loss_policy", batch, experience, self._settings),
            *penalty_terms(batch, experience, self._settings, kl_coefficient),
        ]

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        raise NotImplementedError("REINFORCE has no critic")

    def state(self) -> dict[str, Any]:
        return {"baseline": self._baseline, "seen": self._seen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._baseline, self._seen = float(state["baseline"]), float(state["seen"])
