"""Evaluation of a reward model: how often it puts the better answer first, how confident it is, and
how well calibrated.

Confidence intervals come from a bootstrap over groups: pairs of one prompt are no independent
observations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.columns import NO_COLUMNS, columns_of
from common.data.preferences import Preference, load_preferences
from common.failures import DataFailure, InputError
from common.storage.checkpoint import open_checkpoint
from learner.evaluation.intervals import bootstrap
from learner.evaluation.measure import run_of
from learner.parallel.group import Group, OneRank
from learner.resume import evaluated_corpus
from learner.rl.preference_losses import EPSILON, ranking_pairs, win_probability
from reward_service.reward_models.model import (
    Dialogue,
    PreferenceModel,
    Reading,
    expected_and_std,
    in_passes,
)
from reward_service.reward_models.serving import open_model
from reward_service.reward_models.versions import is_ours

BINS = 10
PASS_TOKENS = 16384


@dataclass(frozen=True)
class PreferenceReport:
    """On held-out pairs. All intervals hold 95 %."""

    pairs: int
    groups: int
    """Prompts, or what the data calls a group: the independent observations."""
    accuracy: float
    """Share of pairs whose better answer has the higher reward; a tie is none."""
    accuracy_low: float
    accuracy_high: float
    loss: float
    """-log of the probability that the better answer wins, without margin or centring."""
    loss_low: float
    loss_high: float
    constant_loss: float
    """Loss of the best constant answer: log 2, or -log((K - 1) / 2K) for K levels."""
    calibration_error: float
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their pairs
    (expected calibration error)."""
    calibration: list[tuple[float, float, int]]
    """Mean confidence, accuracy and number of pairs of each bin that has pairs."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def readings_of(model: PreferenceModel, preference: Preference) -> tuple[Reading, ...]:
    """One for each answer, best first."""
    return tuple(
        model.read(Dialogue(preference.history, preference.prompt, answer))
        for answer in preference.answers
    )


def pairs_of(answers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(better, worse, prompt) of every pair of answers to several prompts, in a row: int64 [pairs]
    each. answers: how many each has."""
    better, worse, prompt, start = [], [], [], 0
    for i, count in enumerate(answers):
        b, w = ranking_pairs(count)
        better.append(b + start)
        worse.append(w + start)
        prompt.append(torch.full_like(b, i))
        start += count
    return torch.cat(better), torch.cat(worse), torch.cat(prompt)


class Outcomes(NamedTuple):
    """Predictions of a model for each pair of answers."""

    differences: np.ndarray
    """Reward of the better minus that of the worse: float64 [pairs]."""
    wins: np.ndarray
    loses: np.ndarray
    """Probabilities that the better answer does so; with discrete scores they leave room for a
    tie."""
    groups: list[str]
    """`Preference.group` of each pair."""
    levels: int

    def and_those(self, others: Outcomes) -> Outcomes:
        """The outcomes of both, from models of the same kind."""
        assert self.levels == others.levels
        differences, wins, loses = (
            np.concatenate(pair) for pair in zip(self[:3], others[:3], strict=True)
        )
        return Outcomes(differences, wins, loses, self.groups + others.groups, self.levels)


@torch.no_grad()
def outcomes(model: PreferenceModel, preferences: Sequence[Preference], group: Group) -> Outcomes:
    """Every rank calls it with the same preferences and scores its share of them; all get the
    same."""
    counts = [len(preference.answers) for preference in preferences]
    _, _, prompts = pairs_of(counts)
    firsts = np.cumsum([0, *(count * (count - 1) // 2 for count in counts)])
    # difference of rewards, probability that the better wins, that it loses
    found = torch.zeros(3, len(prompts), dtype=torch.float64, device=group.device)
    mine = list(range(group.rank, len(preferences), group.size))
    if mine:
        readings = [readings_of(model, preferences[i]) for i in mine]
        logits = in_passes(
            model.logits, [reading for each in readings for reading in each], PASS_TOKENS
        )
        better, worse, _ = (
            part.to(logits.device) for part in pairs_of([len(each) for each in readings])
        )
        places = torch.cat([torch.arange(firsts[i], firsts[i + 1]) for i in mine]).to(group.device)
        rewards, _ = expected_and_std(logits)
        wins, loses = win_and_loss(logits[better], logits[worse])
        found[:, places] = torch.stack([rewards[better] - rewards[worse], wins, loses]).to(
            group.device
        )
    differences, wins, loses = group.sum(found).cpu().numpy()
    return Outcomes(
        differences, wins, loses, [preferences[i].group for i in prompts.tolist()], model.levels
    )


def measure(
    model: PreferenceModel, preferences: Sequence[Preference], group: Group
) -> PreferenceReport:
    """The report on `outcomes`; every rank calls it."""
    return report(outcomes(model, preferences, group))


def is_reward_model(where: str) -> bool:
    """Whether `where` is a run or a checkpoint whose model scores answers, or a folder that
    transformers opens."""
    if not is_ours(where):
        return (Path(where) / "config.json").is_file()
    with open_checkpoint(where).folder() as folder:
        config = json.loads((folder / "config.json").read_bytes())
    return config.get("model_type") == "rxt_reward" or any(
        "SequenceClassification" in name for name in config.get("architectures") or ()
    )


def evaluate_reward_model(where: str, data: str | None = None) -> dict[str, Any]:
    """`engram eval` of a reward model (a run, a checkpoint, a folder or a hub name) on a file of
    preferences, or on those that its run held out.

    "with_history" as the data has it; "without_history", where it has any, is the control: what the
    last interaction alone gives away.
    Raises InputError where either cannot be read.
    """
    model = open_model(where, "transformers")
    preferences = evaluated_preferences(where, data)
    kinds = {"with_history": preferences}
    if any(preference.history for preference in preferences):
        kinds["without_history"] = [replace(preference, history=()) for preference in preferences]
    group = OneRank(next(model.module.parameters()).device)
    try:
        results = {name: measure(model, part, group).to_json() for name, part in kinds.items()}
    except DataFailure as misfit:
        raise InputError(data or where, str(misfit)) from misfit
    return {"preferences": results}


def evaluated_preferences(where: str, data: str | None) -> list[Preference]:
    """The preferences of a file, read as the reward model's run reads its files; or those that the
    run held out. InputError where these are others than when it was started."""
    directory = run_of(open_checkpoint(where).where) if is_ours(where) else None
    if data is not None:
        columns = columns_of(directory.run().data.preference_columns) if directory else NO_COLUMNS
        return load_preferences(data, columns)
    if directory is None:
        raise InputError(
            where, "lies in no run, so it has no held-out preferences; name a file with --data"
        )
    return evaluated_corpus(directory.run(), directory).held_preferences


def win_and_loss(better: Tensor, worse: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities that the better answer wins and that it loses, float64 [pairs]; with discrete
    scores they leave room for a tie."""
    better, worse = better.double(), worse.double()
    if better.shape[-1] == 1:
        wins = torch.sigmoid(better[:, 0] - worse[:, 0])
        return wins, 1 - wins
    return win_probability(better, worse), win_probability(worse, better)


def report(found: Outcomes) -> PreferenceReport:
    """Figures over all pairs; the same for the same pairs."""
    difference, wins, loses = found.differences, found.wins, found.loses
    _, groups = np.unique(found.groups, return_inverse=True)
    constant_loss = (
        math.log(2) if found.levels == 1 else -math.log((found.levels - 1) / (2 * found.levels))
    )
    right = (difference > 0).astype(np.float64)
    losses = -np.log(wins + EPSILON)
    # A tie of levels counts half for each side: then the two probabilities add up to 1, and
    # confidence is that of the side it takes.
    share = wins + (1 - wins - loses) / 2
    confidence = np.maximum(share, 1 - share)
    taken = np.where(share > 0.5, 1.0, 0.0)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    filled = [bins == b for b in range(BINS) if (bins == b).any()]
    calibration = [
        (float(confidence[each].mean()), float(taken[each].mean()), int(each.sum()))
        for each in filled
    ]
    error = sum(count * abs(sure - correct) for sure, correct, count in calibration) / len(right)
    sums = np.stack([np.bincount(groups, each) for each in (right, losses)])
    low, high = bootstrap(sums, np.tile(np.bincount(groups), (2, 1)))
    return PreferenceReport(
        len(right), int(groups.max()) + 1, float(right.mean()), low[0], high[0],
        float(losses.mean()), low[1], high[1], constant_loss,
        error, calibration,
    )  # fmt: skip
