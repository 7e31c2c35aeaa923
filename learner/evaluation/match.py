"""Agreement of answers with their references, and mean rewards: figures that need no facts.

Both are computed for every answered turn, so conversations without facts are evaluated too. Keys of
a match are the number of the turn in its conversation, from 1, and "all"; keys of rewards are the
components and "total".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from common.episode import Episode
from common.text.values import words
from learner.evaluation.figures import Figure

MATCH = ("exact_match", "f1")


def match_figures(episodes: Sequence[Episode]) -> dict[str, Figure]:
    """Each of MATCH over the answered turns that have a reference.

    exact_match: answers with the words of the reference, in their order. f1: mean F1 of the words
    of answer and reference, as in SQuAD (Rajpurkar et al. 2016). Case and punctuation do not count
    (`common.text.values.words`).
    """
    pairs = [
        [
            (str(number), _words(turn.answer), _words(turn.reference))
            for number, turn in enumerate(episode.turns)
            if number and turn.reference.strip()
        ]
        for episode in episodes
    ]
    measures = {"exact_match": lambda answer, reference: float(answer == reference), "f1": word_f1}
    return {
        name: Figure.of(
            (
                (key, measure(answer, reference))
                for number, answer, reference in turns
                for key in (number, "all")
            )
            for turns in pairs
        )
        for name, measure in measures.items()
    }


def word_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words of an answer; a word counts as often as
    it stands in both."""
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def reward_figure(episodes: Sequence[Episode]) -> Figure:
    """Mean of each raw component and of the total, each over the turns that have it."""
    return Figure.of((_rewards(episode) for episode in episodes), bounded=False)


def _rewards(episode: Episode) -> Iterator[tuple[str, float]]:
    for turn in episode.answered:
        yield from turn.rewards.items()
        if turn.reward is not None:
            yield "total", turn.reward


def _words(text: str) -> list[str]:
    """Words of a text; of one that has none, such as a lone sign, the text itself."""
    return words(text) or text.split()
