"""Whether an answer holds the facts that it was asked for, and no others.

Which values are wrong follows from what an episode carries. The values of all facts of all its
turns are the values of this conversation; a list of further known values may come with them (the
values a data set draws from). Of these, a value is wrong in an answer when the turn does not ask
for it and neither its query nor its reference mentions it: it belongs to another question, is out
of date, or was never told. Right values are taken out of the answer before wrong ones are sought,
and longer ones before shorter ones, so "York" is not found inside "New York", and a guess at that
is one value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from common.config.components import Recall
from common.episode import Interaction, Turn
from common.text.values import folded, place, taken_out, value_words
from reward_service.comparison import Compared, TurnBatch
from reward_service.components.component import RewardComponent

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Which values an answer names, as counts of different ones."""

    right: int
    """Values asked for that stand in the answer."""
    asked: int
    """Values asked for, one at least."""
    wrong: int
    """Wrong values that stand in it."""

    @property
    def recall(self) -> float:
        """Share of the values asked for that the answer names."""
        return self.right / self.asked

    @property
    def precision(self) -> float | None:
        """Share of the right ones among the values that it names; None where it names none."""
        named = self.right + self.wrong
        return self.right / named if named else None

    @property
    def exact(self) -> bool:
        """Whether it names every value asked for and no wrong one."""
        return self.right == self.asked and self.wrong == 0


def recall_reward(
    turns: Iterable[Turn], known: Iterable[Collection[Words]], false_recall: float
) -> np.ndarray:
    """Recall of each turn: float64 [turns]; nan where a turn has no facts, and recall does not
    apply.

    known: for each turn the `words_of_values` of its conversation, and any others that could be
    confused with them.
    """
    return np.array(
        [
            recall(named_values(turn, values), false_recall) if turn.facts else np.nan
            for turn, values in zip(turns, known, strict=True)
        ],
        dtype=np.float64,
    )


def recall(named: Named, false_recall: float) -> float:
    """Share of right values in the answer, less `false_recall` for each value too many or too few:
    in [-false_recall, 1].

    (right - false_recall · |named - asked|) / max(named, asked), where `named` counts right and
    wrong values alike. An answer that names as many values as were asked for earns the share that
    is right, so a wrong guess costs nothing beyond what it fails to earn. One more value earns less
    than a guess does, and so does one that is left out, however uncertain the guess
    (docs/rewards.md).
    """
    count = named.right + named.wrong
    return (named.right - false_recall * abs(count - named.asked)) / max(count, named.asked)


def named_values(turn: Turn, known: Collection[Words]) -> Named:
    """Counts of the values that the answer of a turn with facts names (`values_named`)."""
    right, wrong = values_named(turn, known)
    return Named(len(right), len({value_words(fact.value) for fact in turn.facts}), len(wrong))


def values_named(turn: Turn, known: Collection[Words]) -> tuple[set[Words], set[Words]]:
    """The right and the wrong values that the answer of a turn with facts names
    (common/text/values.py).

    Longer values come first: York is not named where "New York" stands, whichever of them is right.
    """
    answer = folded(turn.answer)
    asked = [value_words(fact.value) for fact in turn.facts]
    for value, fact in zip(asked, turn.facts, strict=True):
        if not value:
            raise ValueError(
                f"the value {fact.value!r} of a fact holds nothing that an answer could contain"
            )
    wanted = set(asked)
    standing = [value for value in wanted if place(answer, value)]
    # Mostly there is nothing else to look for.
    others = [
        value
        for value in known
        if value not in wanted and value[0] in answer and place(answer, value)
    ]
    if len(standing) + len(others) < 2:
        named = {*standing, *others}
    else:
        named = set()
        for value in sorted(
            [*standing, *others], key=lambda value: len(" ".join(value)), reverse=True
        ):
            if place(answer, value):
                answer = taken_out(answer, value)
                named.add(value)
    wrong = named - wanted
    if wrong:
        context = folded(turn.query), folded(turn.reference)
        wrong = {value for value in wrong if not any(place(text, value) for text in context)}
    return named & wanted, wrong


def conversation_values(turns: Iterable[Turn | Interaction]) -> set[str]:
    """Every value that a question of the turns asks for, and every value that one of these
    replaced."""
    return {
        value for turn in turns for fact in turn.facts for value in (fact.value, *fact.outdated)
    }


def words_of_values(values: Iterable[str]) -> frozenset[Words]:
    """The values as `named_values` takes them; blank ones cannot stand in an answer, and are left
    out."""
    return frozenset(words for words in map(value_words, values) if words)


def _known(batch: TurnBatch) -> list[Collection[Words]]:
    """For each turn of a batch, the values that could stand in its answer."""
    everywhere = words_of_values(batch.known_values)
    return [own | everywhere if own else everywhere for own in batch.once(values_of_episodes)]


def values_of_episodes(batch: TurnBatch) -> list[frozenset[Words]]:
    """For each turn of a batch, the values of its conversation."""
    values: list[frozenset[Words]] = []
    for _, episode in groupby(zip(batch.began, batch.turns, strict=True), key=itemgetter(0)):
        turns = [turn for _, turn in episode]
        values += [words_of_values(conversation_values(turns))] * len(turns)
    return values


def _score(section: Recall, compared: Compared) -> np.ndarray:
    known = compared.batch.once(_known)
    own = [known[comparison.turn] for comparison in compared.group]
    return recall_reward(compared.turns, own, section.false_recall)


RECALL = RewardComponent(Recall, _score, may_not_apply=True)
