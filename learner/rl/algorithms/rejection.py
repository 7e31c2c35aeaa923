"""Rejection sampling: cross-entropy on the best of a batch (RAFT; Dong et al. 2023, arXiv
2304.06767)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.config.algorithms import Rejection
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.advantages import SMALLEST_VARIANCE, mean_and_variance
from learner.rl.algorithms.algorithm import Needs
from learner.rl.algorithms.terms import penalty_terms
from learner.rl.experience import Experience
from learner.rl.groups import compared_returns, gather_batch


class RejectionSampling:
    """The best are chosen over all ranks. All losses are of what is kept."""

    def __init__(self, settings: Rejection, reward_width: float = 1.0):
        self.needs = Needs(settings.samples, queries=settings.learn_queries)
        self._settings = settings

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        """Advantages are 1 for what is kept and 0 for the rest. Where all rewards of the batch are
        alike none is better than another, and nothing is kept."""
        settings = self._settings
        scores, scored = compared_returns(
            experience, settings.discount, settings.compare == "episode"
        )
        table = gather_batch([torch.where(scored, scores, 0.0), scored], places, group)
        held, present = table[0], table[1] > 0
        count, _, spread = mean_and_variance(
            experience.rewards, experience.rewarded, reduce=group.sum
        )
        alike = float(count) > 1 and float(spread) <= SMALLEST_VARIANCE
        chosen = torch.zeros_like(present) if alike else self._best(held, present)
        mine = chosen[places, : scores.shape[1]] & experience.scored
        kept, candidates = float(chosen.sum()), float(present.sum())
        figures = {
            "objective/without_signal": float(alike),
            "rejection/kept": kept / max(candidates, 1.0),
            "rejection/kept_return": float(held[chosen].sum()) / max(kept, 1.0),
        }
        return replace(
            experience,
            scored=mine,
            advantages=mine.to(scores.dtype),
            returns=torch.where(mine, scores, 0.0),
            figures=figures,
        )

    def _best(self, scores: Tensor, present: Tensor) -> Tensor:
        """bool, where a score is kept. scores, present: [places, columns] of the whole batch."""
        chosen, settings = torch.zeros_like(present), self._settings
        rows = settings.samples if settings.keep_of == "task" else max(1, len(scores))
        for start in range(0, len(scores), rows):
            part = slice(start, start + rows)
            at = present[part].nonzero()
            number = kept_number(len(at), settings.keep, settings.keep_share)
            best = best_of(scores[part][at[:, 0], at[:, 1]], number)
            chosen[start + at[best, 0], at[best, 1]] = True
        return chosen

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        return [
            self._cross_entropy(batch, experience),
            *penalty_terms(batch, experience, self._settings, kl_coefficient),
        ]

    def _cross_entropy(self, batch: TokenBatch, experience: Experience) -> LossTerm:
        kept = batch.per_action(experience.scored)
        loss, lengths = -batch.totals(batch.log_probs), batch.lengths
        if self._settings.learn_queries:
            if batch.queries is None or batch.query_lengths is None:
                raise ValueError("the policy gave no log-probabilities of queries")
            loss, lengths = loss - batch.queries, lengths + batch.query_lengths
        loss = torch.where(kept, loss, 0.0)
        if self._settings.loss_mean == "answer_means":
            loss = loss / lengths
        per_token = self._settings.loss_mean == "tokens"
        count = torch.where(kept, lengths, 0).sum() if per_token else kept.sum()
        return LossTerm("rejection/loss_policy", loss.sum(), float(count))

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        raise NotImplementedError("rejection sampling has no critic")

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...


def kept_number(candidates: int, keep: int | None, share: float) -> int:
    """How many of some candidates are kept: `keep`, or a share rounded down, one at least; all
    where there are no more."""
    # 0.29 · 100 is 28.999…996, and 29 are meant.
    number = max(1, int(share * candidates + 1e-9)) if keep is None else keep
    return min(number, candidates)


def best_of(scores: Tensor, number: int) -> Tensor:
    """Indices of the largest scores, best first; of equal ones the earlier. scores: [n]."""
    return torch.sort(scores, descending=True, stable=True).indices[:number]
