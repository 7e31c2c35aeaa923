"""Agreement of answers with their references, and mean rewards: figures that need no facts.

Both are computed for every answered turn, so conversations without facts are evaluated too. Keys of
a match are the number of the turn in its conversation, from 1 (`in_powers`), and "all"; keys of
rewards are the components and "total".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from common.episode import Episode
from common.text.values import words
from learner.evaluation.figures import Figure, Sums, in_powers
from learner.evaluation.parts import Part, whole

MATCH = ("exact_match", "f1")
SCORES = "scores"


def match_figures(episodes: Sequence[Episode]) -> dict[str, Figure]:
    """Each of MATCH over the answered turns that have a reference.

    exact_match: answers with the words of the reference, in their order. f1: mean F1 of the words
    of answer and reference, as in SQuAD (Rajpurkar et al. 2016). Case and punctuation do not count
    (`common.text.values.words`).
    """
    sums = Sums(len(episodes))
    for part in whole(episodes):
        add_match(sums, part)
    return {name: sums.figure(name) for name in MATCH}


def add_match(sums: Sums, part: Part) -> None:
    """Add each of MATCH for the turns of a part."""
    for number, turn in part.answered:
        if not turn.reference.strip():
            continue
        answer, reference = _words(turn.answer), _words(turn.reference)
        for key in (in_powers(number), "all"):
            sums.add("exact_match", part.conversation, key, float(answer == reference))
            sums.add("f1", part.conversation, key, word_f1(answer, reference))


def word_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words of an answer; a word counts as often as
    it stands in both."""
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def reward_figure(episodes: Sequence[Episode]) -> Figure:
    """Mean of each raw component and of the total, each over the turns that have it."""
    sums = Sums(len(episodes))
    for part in whole(episodes):
        add_rewards(sums, part)
    return sums.figure(SCORES, bounded=False)


def add_rewards(sums: Sums, part: Part) -> None:
    """Add SCORES for the turns of a part."""
    for _, turn in part.answered:
        for component, value in turn.rewards.items():
            sums.add(SCORES, part.conversation, component, value)
        if turn.reward is not None:
            sums.add(SCORES, part.conversation, "total", turn.reward)


def _words(text: str) -> list[str]:
    """Words of a text; of one that has none, such as a lone sign, the text itself."""
    return words(text) or text.split()
