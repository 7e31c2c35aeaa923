"""How often two people say the same of the same answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from common.text.counted import counted
from deploy.label.judgements import Judgement
from learner.evaluation.intervals import wilson


@dataclass(frozen=True)
class Agreement:
    """Over pairs of answers that two people compared: better, worse or alike."""

    pairs: int
    same: int
    questions: int
    """Questions that two people or more judged."""
    differing: int
    """Those of them on which they did not say the same."""
    by_chance: float
    """Share of pairs that would be the same if each said what all say as often."""

    @property
    def share(self) -> float:
        return self.same / self.pairs if self.pairs else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; pairs of one question count as if they were independent."""
        return wilson(self.share, self.pairs) if self.pairs else (0.0, 1.0)

    @property
    def beyond_chance(self) -> float | None:
        """Scott's pi (1955): 0 is chance, 1 is full agreement; None where nothing varies."""
        if not self.pairs or self.by_chance >= 1:
            return None
        return (self.share - self.by_chance) / (1 - self.by_chance)


def agreement(judgements: Iterable[Judgement]) -> Agreement:
    """judgements: those that count, one of each person on each question."""
    of_question: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if judgement.verdict in ("ranked", "all_bad"):
            of_question[judgement.question.id].append(judgement)
    pairs = same = questions = differing = 0
    said: Counter[int] = Counter()
    for told in of_question.values():
        if len(told) < 2:
            continue
        questions += 1
        agreed = True
        for one, other in combinations(told, 2):
            for left, right in zip(signs(one), signs(other), strict=True):
                pairs += 1
                same += left == right
                agreed = agreed and left == right
                said.update((left, right))
        differing += not agreed
    total = sum(said.values())
    # Which of two answers comes first is arbitrary, so better and worse are one another's mirror.
    strict = (said[1] + said[-1]) / total / 2 if total else 0.0
    chance = 2 * strict * strict + (said[0] / total) ** 2 if total else 0.0
    return Agreement(pairs, same, questions, differing, chance)


def signs(judgement: Judgement) -> list[int]:
    """For each pair of the question's answers in a fixed order: 1 where the first is better, -1
    where the second is, 0 for a tie."""
    answers = judgement.question.answers
    places = sorted(range(len(answers)), key=lambda place: answers[place])
    ranks = judgement.ranks or (1,) * len(places)
    return [
        (ranks[second] > ranks[first]) - (ranks[second] < ranks[first])
        for first, second in combinations(places, 2)
    ]


def agreement_sentence(found: Agreement) -> str:
    if not found.questions:
        return "no question was judged by two people; --shared 0.1 asks all of them a tenth"
    low, high = found.interval
    beyond = found.beyond_chance
    chance = "" if beyond is None else f", {beyond:.2f} beyond chance (Scott's pi)"
    return (
        f"{counted(found.questions, 'questions')} judged by two people or more: they agree on "
        f"{found.same} of {found.pairs} pairs of answers ({found.share:.0%}, {low:.0%} to "
        f"{high:.0%}{chance}) and differ on {counted(found.differing, 'questions')}, of which all "
        "judgements count"
    )
