"""A verdict on each answered turn of some episodes: every component raw, and the weighted total.
Pure. Which components there are says `components/table.py`.

Invariants:
* Special tokens are taken out of every text first: template tokens and padding earn nothing and
  change nothing. So are thoughts, of answers, references and saved interactions alike: only the
  component `thought` looks at them.
* A total is the weighted mean of the components that apply, each clipped and normalised as its term
  says. Recall does not apply to a turn without facts: a 0 there would punish turns that ask
  nothing, and a 1 would pay them for nothing, so its weight goes to the others in proportion. Where
  no component with a weight applies, the turn has reward 0 by rule (`Verdict.unrewarded`).
* A turn that cannot be scored has reward None and says why in `failure`. It never gets a number,
  and no other turn is touched, except those that are compared with the very text at fault.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from types import MappingProxyType

import numpy as np

from common.config.rewards import RewardMix, Rewards
from common.data.special_tokens import THINK
from common.data.thoughts import spoken
from common.episode import Episode, RewardTerm, Strategy, Turn, Verdict
from common.failures import DataFailure
from common.telemetry.timing import PhaseTimer
from reward_service.comparison import Compared, Comparison, Form, TurnBatch, comparisons
from reward_service.components.table import Part, parts
from reward_service.normalization import Statistics, terms_of

HELD = ("failed", "unscored")
"""Episodes that keep the verdicts that they have."""


def score_episodes(
    episodes: Sequence[Episode],
    rewards: Rewards,
    embedding: np.ndarray,
    special_ids: Collection[int],
    known_values: Collection[str] = (),
    statistics: Statistics = MappingProxyType({}),
) -> list[Episode]:
    """The episodes with the verdicts of `judge` filled in, and status "scored", or "unscored" where
    no turn could be scored."""
    verdicts = judge(episodes, rewards, embedding, special_ids, known_values, statistics)
    return [episode.judged(own) for episode, own in zip(episodes, verdicts, strict=True)]


def judge(
    episodes: Sequence[Episode],
    rewards: Rewards,
    embedding: np.ndarray,
    special_ids: Collection[int],
    known_values: Collection[str] = (),
    statistics: Statistics = MappingProxyType({}),
    timer: PhaseTimer | None = None,
) -> list[list[Verdict]]:
    """A verdict on each answered turn of each episode.

    rewards: each component's raw value, whatever its weight; absent where it does not apply. terms:
    how each of them entered the total. reward: the weighted mean, mapped to [-1, 1] where
    `symmetric`, times `scale`. Recall can take it below its range.
    embedding: frozen float32 [vocabulary, width]. special_ids: tokens that are no part of any text.
    known_values: values that a wrong answer may hold, besides those of the conversation itself
    (reward_service/components/recall.py).
    statistics: of the components that are normalised (reward_service/normalization.py). The turns
    of an episode that came as "failed" or "unscored" are judged by what they hold already.
    timer: takes the time of each component.
    """
    turns: list[Turn] = []
    began: list[int] = []
    mixes = _mixes(rewards)
    of_step = {name: dict.fromkeys(mixes, mix) for name, mix in rewards.steps.items()}
    every = (mix for table in (mixes, *of_step.values()) for mix in table.values())
    groups: dict[RewardMix, list[Comparison]] = {mix: [] for mix in every}
    for episode in episodes:
        if episode.status not in HELD:
            length, back = len(episode.turns), rewards.turns_back
            table = of_step.get(episode.step, mixes)
            for comparison in comparisons(episode.strategy, length, len(turns), back):
                is_first = comparison.turn == len(turns) + 1
                groups[table[episode.strategy, comparison.form, is_first]].append(comparison)
        began += [len(turns)] * len(episode.turns)
        turns += episode.turns

    # Only the component `thought` looks at thoughts.
    without = [spoken(turn) for turn in turns] if THINK in special_ids else turns
    clock = timer or PhaseTimer()
    batch = TurnBatch(without, turns, began, embedding, special_ids, known_values, clock)
    verdicts: list[Verdict] = [_HELD] * len(turns)
    for mix, group in groups.items():
        if group:
            results = _scored(parts(mix), Compared(batch, group))
            for comparison, verdict in zip(
                group, _verdicts(results, terms_of(mix, statistics), rewards), strict=True
            ):
                verdicts[comparison.turn] = verdict

    out, first = [], 0
    for episode in episodes:
        judged = verdicts[first + 1 : first + len(episode.turns)]
        if episode.status in HELD:
            judged = [_held_by(turn) for turn in episode.answered]
        elif episode.strategy in rewards.delayed:
            judged = [*map(_delayed, judged[:-1]), *judged[-1:]]
        out.append(judged)
        first += len(episode.turns)
    return out


_HELD = Verdict({}, {}, None)
"""Where a verdict is still to come."""


def _held_by(turn: Turn) -> Verdict:
    return Verdict(turn.rewards, turn.terms, turn.reward, turn.reward_std, turn.failure)


def _delayed(verdict: Verdict) -> Verdict:
    """The verdict on an answer before the one that earns: what is below 0 stays, all else waits."""
    if verdict.reward is None or verdict.reward < 0:
        return verdict
    return verdict._replace(terms={}, reward=0.0)


def unscored(episode: Episode, reason: str) -> list[Verdict]:
    """Every answered turn of the episode is without a reward for `reason`."""
    return [Verdict({}, {}, None, failure=reason)] * len(episode.answered)


def _mixes(rewards: Rewards) -> dict[tuple[Strategy, Form, bool], RewardMix]:
    """The mix for each (strategy, form, whether it is the first answered turn)."""
    strategies: dict[Strategy, RewardMix] = {
        "single": rewards.single,
        "cumulative": rewards.cumulative,
        "long_term": rewards.long_term,
    }
    forms: tuple[Form, ...] = ("standard", "topic_change", "long_range")
    table = {}
    for strategy, own in strategies.items():
        for form in forms:
            first = rewards.topic_change if form == "topic_change" else rewards.first_turn
            table[strategy, form, False] = own
            table[strategy, form, True] = first or own
    return table


# --- scoring of comparisons -----------------------------------------------------------------------


@dataclass(slots=True)
class _Results:
    """The values of comparisons of one mix, row by row."""

    raw: dict[str, np.ndarray]
    """By component, float64 [comparisons]; nan where it does not apply."""
    std: np.ndarray
    """Standard deviation of a reward model's score, the largest of several: float64
    [comparisons]."""
    failures: dict[int, str]
    """Why the comparisons of these rows have no reward."""


def _scored(mix: Sequence[Part], compared: Compared) -> _Results:
    """All components of each comparison."""
    results = _Results({}, np.zeros(len(compared)), {})
    together = [part for part in mix if not part.component.by_turn]
    _fill_in(results, together, compared, 0, len(compared))
    may_not_apply = {part.name for part in together if part.component.may_not_apply}
    for name, values in results.raw.items():
        undefined = np.isinf(values) if name in may_not_apply else ~np.isfinite(values)
        for row in np.flatnonzero(undefined).tolist():
            results.failures.setdefault(row, f"{name}: the value is {values[row]}")
    for part in mix:
        if part.component.by_turn:
            _add_by_turn(results, part, compared)
    return results


def _fill_in(
    results: _Results, mix: Sequence[Part], compared: Compared, start: int, stop: int
) -> None:
    """Score rows start … stop - 1: all at once, and where that fails, in halves, until what is at
    fault stands alone."""
    found: dict[str, np.ndarray] = {}
    try:
        part = compared.rows(range(start, stop))
        for name, component, section in mix:
            with compared.batch.timer(name), _blaming(name):
                found[name] = np.asarray(component.score(section, part))
    except DataFailure as failure:
        if stop - start == 1:
            results.failures[start] = str(failure)
            return
        middle = (start + stop) // 2
        _fill_in(results, mix, compared, start, middle)
        _fill_in(results, mix, compared, middle, stop)
        return
    for name, values in found.items():
        if name not in results.raw:
            results.raw[name] = np.full(len(compared), np.nan)
        results.raw[name][start:stop] = values


def _add_by_turn(results: _Results, part: Part, compared: Compared) -> None:
    """A component that says itself which turns fail. Turns that have failed already are not
    sent."""
    sent = [row for row in range(len(compared)) if row not in results.failures]
    with compared.batch.timer(part.name):
        outcomes = part.component.score(part.section, compared.rows(sent))
    values = results.raw[part.name] = np.full(len(compared), np.nan)
    for row, outcome in zip(sent, outcomes, strict=True):
        match outcome:
            case str(why):
                results.failures[row] = f"{part.name}: {why}"
            case (value, std):
                values[row], results.std[row] = value, max(std, results.std[row])
            case None:
                pass
            case value:
                values[row] = value


@contextmanager
def _blaming(component: str) -> Iterator[None]:
    """Whatever goes wrong with a turn's data inside is the failure of that turn, never of the batch
    or of the worker."""
    try:
        yield
    except DataFailure:
        raise
    except Exception as error:
        raise DataFailure(f"{component}: {type(error).__name__}: {error}") from error


# --- verdicts -------------------------------------------------------------------------------------


def _verdicts(
    results: _Results, terms: Mapping[str, RewardTerm], rewards: Rewards
) -> list[Verdict]:
    """From raw values to totals, of one mix."""
    names = list(results.raw)
    raw = np.array(list(results.raw.values())).reshape(len(names), len(results.std))
    applies = ~np.isnan(raw)
    total, weight = np.zeros_like(results.std), np.zeros_like(results.std)
    with np.errstate(over="ignore", invalid="ignore"):  # which shows in the total
        for name, values, where in zip(names, raw, applies, strict=True):
            total += np.where(where, terms[name].weight * terms[name].values(values), 0.0)
            weight += np.where(where, terms[name].weight, 0.0)
        total /= np.where(weight == 0, 1.0, weight)
        if rewards.symmetric:
            total = 2 * total - 1
        total *= rewards.scale
    for row in np.flatnonzero(~np.isfinite(total)).tolist():
        results.failures.setdefault(
            row,
            f"total: the value is {total[row]}, of "
            f"{dict(zip(names, raw[:, row].tolist(), strict=True))}",
        )

    out: list[Verdict] = [_HELD] * len(total)
    # Turns to which the same components apply share their terms, and so a pickle of the batch holds
    # them once.
    for rows in _alike(applies):
        pattern = applies[:, rows[0]]
        own = {name: terms[name] for name, where in zip(names, pattern, strict=True) if where}
        held = [dict(zip(own, row, strict=True)) for row in raw[np.ix_(pattern, rows)].T.tolist()]
        # By rule, whatever the range: rewards of later turns reach back over it
        # (learner/rl/advantages.py).
        rewarded = total[rows] if weight[rows[0]] > 0 else np.zeros(len(rows))
        judged = map(Verdict, held, repeat(own), rewarded.tolist(), results.std[rows].tolist())
        for row, verdict in zip(rows.tolist(), judged, strict=True):
            out[row] = verdict
    for row, failure in results.failures.items():
        out[row] = Verdict({}, {}, None, failure=failure)
    return out


def _alike(flags: np.ndarray) -> list[np.ndarray]:
    """Columns of [flags, columns], of which there is one at least, by what they hold: the numbers
    of those that are the same, ascending."""
    rows = [np.arange(flags.shape[1])]
    for flag in flags:
        rows = [part for own in rows for part in (own[flag[own]], own[~flag[own]]) if len(part)]
    return rows
