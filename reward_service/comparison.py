"""The interactions that each answer is compared with, and their texts as tokens.

The strategy of an episode decides. Turn 0 is the opening interaction; it is never rewarded.

    single       every turn, STANDARD: saved = the opening
    cumulative   every turn, STANDARD: saved = the interaction before, or the one `turns_back`
                 turns before; mean over those before that
    long_term    first, TOPIC CHANGE: saved = the opening, to be unlike it; not in the running mean
                 middle, STANDARD as in cumulative
                 last, LONG RANGE: saved = the opening again, unlike the running mean between
                 (an only turn has nothing in between and is STANDARD)

"Saved" is the query and answer that memory was really written with (`Turn.remembered_ids`). The
interaction before the last turn does not enter the long-range running mean, which lags by one as in
every other turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from common.episode import Strategy, Turn, TurnInContext
from common.failures import DataFailure
from common.telemetry.timing import PhaseTimer
from reward_service.components.tokens import Ragged

T = TypeVar("T")

Form = Literal["standard", "topic_change", "long_range"]
"""How an answer is compared: with an earlier interaction to continue, with one to leave behind, or
with the first one, far back."""


class Comparison(NamedTuple):
    """One turn and the turns that it is compared with. All numbers count turns of the whole batch
    in a row, episode after episode."""

    turn: int
    form: Form
    saved: int
    mean_from: int
    mean_to: int
    """The running mean is over turns mean_from … mean_to - 1; where the two are equal there is none
    yet."""


def comparisons(
    strategy: Strategy, turns: int, first: int = 0, turns_back: int = 1
) -> list[Comparison]:
    """The comparison of each answered turn of an episode of `turns` turns whose opening is number
    `first`. turns_back: how far before an answer its saved interaction stands; at the opening where
    there are fewer."""
    last = turns - 1
    plan = []
    for turn in range(1, turns):
        form: Form = "standard"
        saved, mean_from = max(0, turn - turns_back), 0
        if strategy == "single":
            saved, mean_from = 0, turn
        elif strategy == "long_term":
            mean_from = 1
            if turn == 1 < last:
                form = "topic_change"
            elif 1 < turn == last:
                form, saved = "long_range", 0
        mean_to = max(mean_from, turn - turns_back)
        plan.append(
            Comparison(first + turn, form, first + saved, first + mean_from, first + mean_to)
        )
    return plan


@dataclass(frozen=True, slots=True)
class TurnBatch:
    """All turns of a batch of episodes in a row, and what components read beside them."""

    turns: Sequence[Turn]
    """Without their thoughts."""
    original: Sequence[Turn]
    """The same turns with them."""
    began: Sequence[int]
    """For each turn, the number of the first turn of its episode."""
    embedding: np.ndarray
    """Frozen token embedding: float32 [vocabulary, width]."""
    special_ids: Collection[int]
    known_values: Collection[str]
    """Values that a wrong answer may hold, besides those of the conversation itself."""
    timer: PhaseTimer = field(default_factory=PhaseTimer, compare=False)
    """Times each component, under its name."""
    _made: dict[Callable[[TurnBatch], Any], Any] = field(default_factory=dict, compare=False)

    def once(self, make: Callable[[TurnBatch], T]) -> T:
        """make(self), computed once per batch, however many components and mixes ask for it."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made


class Compared:
    """Some comparisons of a batch: the input of a reward component."""

    def __init__(self, batch: TurnBatch, group: Sequence[Comparison]):
        self.batch, self.group = batch, group

    def __len__(self) -> int:
        return len(self.group)

    def rows(self, rows: Sequence[int]) -> Compared:
        """The comparisons of these rows."""
        return Compared(self.batch, [self.group[row] for row in rows])

    @property
    def turns(self) -> list[Turn]:
        """The compared turns, without their thoughts."""
        return [self.batch.turns[comparison.turn] for comparison in self.group]

    @property
    def in_context(self) -> list[TurnInContext]:
        """The compared turns, without their thoughts, each with what was said before it."""
        every = self.batch.once(_in_context)
        return [every[comparison.turn] for comparison in self.group]

    @property
    def original(self) -> list[Turn]:
        """The compared turns, with their thoughts."""
        return [self.batch.original[comparison.turn] for comparison in self.group]

    @property
    def conversations(self) -> list[Sequence[Turn]]:
        """Each compared turn after the turns of its episode before it."""
        turns, began = self.batch.turns, self.batch.began
        return [turns[began[each.turn] : each.turn + 1] for each in self.group]

    @cached_property
    def texts(self) -> ComparedTexts:
        """The texts as tokens. DataFailure where their tokens are none."""
        try:
            return ComparedTexts(self.batch.turns, self.group, self.batch.special_ids)
        except Exception as error:
            raise DataFailure(f"tokens: {type(error).__name__}: {error}") from error


class ComparedTexts:
    """Texts of some comparisons, without special tokens.

    forms [comparisons]: each comparison's `Form`. The turns that any of them needs stand in a row,
    `turns`, and the row of each turn holds its query, its answer and its reference. own, saved
    [comparisons]: positions of the compared and the saved turns in that row. means_over: positions
    of the turns that running means are over, mean_positions: position of each within its mean.
    """

    def __init__(
        self, turns: Sequence[Turn], group: Sequence[Comparison], special_ids: Collection[int]
    ):
        """turns: all those that the group's numbers count. Only the turns that are compared are
        looked at.

        ValueError or TypeError where their tokens are none.
        """
        turn, forms, saved_turn, mean_from, mean_to = zip(*group, strict=True)
        self.forms, own, saved = np.array(forms), np.array(turn), np.array(saved_turn)
        first, stop = np.array(mean_from), np.array(mean_to)
        means_over, self.mean_positions = _ranges(first, stop)
        needed = np.unique(np.concatenate([own, saved, means_over]))

        def position(numbers: np.ndarray) -> np.ndarray:
            return np.searchsorted(needed, numbers)

        self.own, self.saved, self.means_over = position(own), position(saved), position(means_over)
        self.with_mean = np.flatnonzero(stop > first)
        """Comparisons that have a running mean."""
        self.mean_ends = position(stop[self.with_mean] - 1)
        """Position of the last turn of each of these means."""
        self.turns = [turns[number] for number in needed.tolist()]

        # In the flat array, a query is followed by what memory was written with, so that the two
        # are one span.
        sequences: list[Sequence[int]] = []
        forced = np.zeros(len(needed), dtype=np.int64)
        for i, each in enumerate(self.turns):
            if each.teacher_forced:
                forced[i] = 1
                sequences += (each.answer_ids, each.query_ids, each.reference_ids)
            else:
                sequences += (each.query_ids, each.answer_ids, each.reference_ids)
        self.tokens = Ragged.of(sequences).without(special_ids)
        row = 3 * np.arange(len(needed))
        self._query, self._answer, self._reference = row + forced, row + 1 - forced, row + 2
        query = self.tokens.take(self._query)
        self._remembered = Ragged(
            self.tokens.flat, query.starts, query.lengths + self.tokens.lengths[self._query + 1]
        )

    @property
    def answers(self) -> Ragged:
        """The answer of each comparison."""
        return self.tokens.take(self._answer[self.own])

    @property
    def references(self) -> Ragged:
        return self.tokens.take(self._reference[self.own])

    @property
    def saved_interactions(self) -> Ragged:
        """Query and answer of the saved interaction of each comparison."""
        return self._remembered.take(self.saved)

    def vectors(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of answers and references [comparisons, width], and what every needed turn left in
        memory [turns, width], from a row for each text of `tokens`: an interaction is the sum of
        its two texts."""
        answers, references = sums[self._answer[self.own]], sums[self._reference[self.own]]
        return answers, references, sums[self._query] + sums[self._query + 1]


def remembered_text(turn: Turn) -> str:
    """`Turn.remembered_ids` as text: the query, and what memory was written with after it."""
    return " ".join(turn.exchange)


def _in_context(batch: TurnBatch) -> list[TurnInContext]:
    """Every turn of a batch with what was said before it."""
    found: list[TurnInContext] = []
    history: tuple[tuple[str, str], ...] = ()
    for number, (turn, first) in enumerate(zip(batch.turns, batch.began, strict=True)):
        if number == first:
            history = ()
        found.append(TurnInContext.of(turn, history))
        history = (*history, turn.exchange)
    return found


def _ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of all ranges in a row, and the position of each in its range."""
    sizes = stops - starts
    positions = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(starts, sizes) + positions, positions
