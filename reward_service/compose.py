"""From episodes to a verdict on each answered turn: every component raw, and the weighted total. Pure.

Invariants:
* Special tokens are taken out of every text first: template tokens and padding earn nothing and change nothing.
* A total is the weighted mean of the components that apply, each clipped and normalised as its term says. Recall does not apply to a
  turn without facts: a 0 there would punish turns that ask nothing, and a 1 would pay them for nothing, so its weight goes to the
  others in proportion.
* A turn that cannot be scored has reward None and says why in `failure`. It never gets a number, and no other turn is touched,
  except those that are compared with the very text at fault.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, isnan
from types import MappingProxyType

import numpy as np

from common.config.rewards import EndpointReward, FunctionReward, RewardMix, Rewards
from common.episode import Episode, Strategy, Term, Turn, Verdict
from common.failures import DataFailure
from reward_service.comparison import ComparedTexts, Comparison, comparisons
from reward_service.cosine import Form
from reward_service.custom import ModelOutcome, function_rewards
from reward_service.endpoint import endpoint_rewards
from reward_service.recall import Words, recall_reward, words_of_values
from reward_service.statistics import Statistics, terms_of
from reward_service.text import exact_match_reward, format_reward


def score_episodes(
    episodes: Sequence[Episode],
    rewards: Rewards,
    embedding: np.ndarray,
    special_ids: Collection[int],
    known_values: Collection[str] = (),
    statistics: Statistics = MappingProxyType({}),
) -> list[Episode]:
    """The episodes with the verdicts of `judge` filled in, and status "scored", or "failed" where no turn could be scored."""
    verdicts = judge(episodes, rewards, embedding, special_ids, known_values, statistics)
    return [episode.judged(own) for episode, own in zip(episodes, verdicts, strict=True)]


def judge(
    episodes: Sequence[Episode],
    rewards: Rewards,
    embedding: np.ndarray,
    special_ids: Collection[int],
    known_values: Collection[str] = (),
    statistics: Statistics = MappingProxyType({}),
) -> list[list[Verdict]]:
    """A verdict on each answered turn of each episode.

    rewards: each component's raw value, whatever its weight; absent where it does not apply. terms: how each of them entered the
    total. reward: the weighted mean, mapped to [-1, 1] where `symmetric`, times `scale`. False recall can take it below its range.
    embedding: frozen float32 [vocabulary, width]. special_ids: tokens that are no part of any text.
    known_values: values that a wrong answer may hold, besides those of the conversation itself (reward_service/recall.py).
    statistics: of the components that are normalised (reward_service/statistics.py).
    The turns of an episode that came as "failed" are judged by what they hold already.
    """
    everywhere = words_of_values(known_values)
    turns: list[Turn] = []
    known: list[Collection[Words]] = []
    began: list[int] = []
    mixes = _mixes(rewards)
    groups: dict[RewardMix, list[Comparison]] = {mix: [] for mix in mixes.values()}
    route = {key: groups[mix] for key, mix in mixes.items()}
    for episode in episodes:
        if episode.status != "failed":
            for comparison in comparisons(episode.strategy, len(episode.turns), first=len(turns)):
                route[episode.strategy, comparison.form, comparison.turn == len(turns) + 1].append(comparison)
        values = {fact.value for turn in episode.turns for fact in turn.facts}
        known += [words_of_values(values) | everywhere if values else everywhere] * len(episode.turns)
        began += [len(turns)] * len(episode.turns)
        turns += episode.turns

    verdicts = [Verdict(turn.rewards, turn.terms, turn.reward, turn.reward_std, turn.failure) for turn in turns]
    for mix, group in groups.items():
        scoring = _Scoring(turns, began, known, mix, embedding, special_ids)
        totals = _Totals(terms_of(mix, statistics), rewards)
        for comparison, result in zip(group, _with_custom(scoring, group, _isolating(scoring, group)), strict=True):
            verdicts[comparison.turn] = totals.of(result)

    out, first = [], 0
    for episode in episodes:
        out.append(verdicts[first + 1 : first + len(episode.turns)])
        first += len(episode.turns)
    return out


def unscored(episode: Episode, reason: str) -> list[Verdict]:
    """Every answered turn of the episode is without a reward for `reason`."""
    return [Verdict({}, {}, None, failure=reason)] * len(episode.answered)


def _mixes(rewards: Rewards) -> dict[tuple[Strategy, Form, bool], RewardMix]:
    """The mix for each (strategy, form, whether it is the first answered turn)."""
    strategies: dict[Strategy, RewardMix] = {"single": rewards.single, "cumulative": rewards.cumulative, "long_term": rewards.long_term}
    forms: tuple[Form, ...] = ("standard", "topic_change", "long_range")
    table = {}
    for strategy, own in strategies.items():
        for form in forms:
            first = rewards.topic_change if form == "topic_change" else rewards.first_turn
            table[strategy, form, False] = own
            table[strategy, form, True] = first or own
    return table


# --- scoring of comparisons ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scoring:
    """What it takes to score comparisons of one mix."""

    turns: Sequence[Turn]
    """All turns of all episodes of the batch, in a row."""
    began: Sequence[int]
    """Of each turn: where its episode begins."""
    known: Sequence[Collection[Words]]
    """Of each turn: the values of its conversation."""
    mix: RewardMix
    embedding: np.ndarray
    special_ids: Collection[int]


Result = dict[str, float] | str
"""Raw value of each component that applies, under STD the spread of a reward model's score; or why the turn has none."""
STD = "/std"
"""No component can have this name."""


def _isolating(scoring: _Scoring, group: Sequence[Comparison]) -> list[Result]:
    """The result of each comparison: all at once, and where that fails, in halves, until what is at fault stands alone."""
    if not group:
        return []
    try:
        components = _components(scoring, group)
    except DataFailure as failure:
        if len(group) == 1:
            return [str(failure)]
        middle = len(group) // 2
        return _isolating(scoring, group[:middle]) + _isolating(scoring, group[middle:])
    if not components:  # a mix of the user's own components alone
        return [{} for _ in group]
    rows = np.stack(list(components.values()), axis=1).tolist()
    return [_result(dict(zip(components, row, strict=True))) for row in rows]


def _result(values: dict[str, float]) -> Result:
    """A nan says of recall that it does not apply, and of any other component that it is undefined."""
    if all(map(isfinite, values.values())):
        return values
    raw = {name: value for name, value in values.items() if name != "recall" or not isnan(value)}
    undefined = [f"{name}: the value is {value}" for name, value in raw.items() if not isfinite(value)]
    return undefined[0] if undefined else raw


def _components(scoring: _Scoring, group: Sequence[Comparison]) -> dict[str, np.ndarray]:
    """Raw value of each component of the mix: {name: float64 [comparisons]}. DataFailure names the component that could not."""
    mix = scoring.mix
    out: dict[str, np.ndarray] = {}
    own = [comparison.turn for comparison in group]
    turns = [scoring.turns[i] for i in own]
    if mix.bleu is not None or mix.cosine is not None or mix.length is not None or mix.repetition is not None:
        with _blaming("tokens"):
            texts = ComparedTexts(scoring.turns, group, scoring.special_ids)
    if mix.bleu is not None:
        with _blaming("bleu"):
            out["bleu"] = texts.bleu(mix.bleu)
    if mix.cosine is not None:
        with _blaming("cosine"):
            out["cosine"] = texts.cosine(mix.cosine, scoring.embedding)
    if mix.length is not None:
        with _blaming("length"):
            out["length"] = texts.length(mix.length)
    if mix.recall is not None:
        with _blaming("recall"):
            out["recall"] = recall_reward(turns, [scoring.known[i] for i in own], mix.recall.false_recall)
    if mix.repetition is not None:
        with _blaming("repetition"):
            out["repetition"] = texts.repetition(mix.repetition)
    if mix.format is not None:
        with _blaming("format"):
            out["format"] = format_reward(mix.format, turns)
    if mix.exact_match is not None:
        with _blaming("exact_match"):
            out["exact_match"] = exact_match_reward(mix.exact_match, turns)
    return out


def _with_custom(scoring: _Scoring, group: Sequence[Comparison], results: list[Result]) -> list[Result]:
    """The results with the components of a user's own and of reward models. Turns that have failed already are not sent."""
    mix = scoring.mix
    for section in mix.named():
        sent = [i for i, result in enumerate(results) if not isinstance(result, str)]
        places = [group[i].turn for i in sent]
        turns = [scoring.turns[place] for place in places]
        if isinstance(section, FunctionReward):
            outcomes: Sequence[ModelOutcome] = function_rewards(section, turns)
        elif isinstance(section, EndpointReward):
            outcomes = endpoint_rewards(section, turns)
        else:
            # Here and not at the top: it brings torch, which a service without reward models does without.
            from reward_service.model_rewards import model_rewards

            outcomes = model_rewards(section, [scoring.turns[scoring.began[place] : place + 1] for place in places])
        for i, outcome in zip(sent, outcomes, strict=True):
            result = results[i]
            assert not isinstance(result, str)
            if isinstance(outcome, str):
                results[i] = f"{section.name}: {outcome}"
            elif isinstance(outcome, tuple):
                value, std = outcome
                results[i] = result | {section.name: value, STD: max(std, result.get(STD, 0.0))}
            elif outcome is not None:
                results[i] = result | {section.name: outcome}
    return results


@contextmanager
def _blaming(component: str) -> Iterator[None]:
    """Whatever goes wrong with a turn's data inside is the failure of that turn, never of the batch or of the worker."""
    try:
        yield
    except Exception as error:
        raise DataFailure(f"{component}: {type(error).__name__}: {error}") from error


class _Totals:
    """From raw values to the total, for one mix."""

    def __init__(self, terms: Mapping[str, Term], rewards: Rewards):
        self._terms, self._rewards = terms, rewards
        self._chosen: dict[tuple[str, ...], tuple[dict[str, Term], float]] = {}
        """The terms that apply and the sum of their weights, by their names: turns of a batch share them, and so a pickle of it holds them
        once."""

    def of(self, result: Result) -> Verdict:
        if isinstance(result, str):
            return Verdict({}, {}, None, failure=result)
        std = result.pop(STD, 0.0)
        names = tuple(result)
        if names not in self._chosen:
            chosen = {name: self._terms[name] for name in names}
            self._chosen[names] = chosen, sum(term.weight for term in chosen.values())
        terms, applicable = self._chosen[names]
        if applicable == 0:
            return Verdict(result, terms, None, failure="no component with a weight applies to this turn")
        total = sum([term.weight * term.value(result[name]) for name, term in terms.items()]) / applicable
        if self._rewards.symmetric:
            total = 2 * total - 1
        return Verdict(result, terms, total * self._rewards.scale, std)
