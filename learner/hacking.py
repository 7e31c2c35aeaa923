"""Figures of answers that tell whether reward is earned without remembering, and the answers that
show it best.

Answers are compared with their references, so a task whose right answers are long, or repeat, or
quote, raises no figure. Those that have none are compared with what answers were like when the
stage began. `learner/watch.py` decides from the figures of many iterations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from common.data.special_tokens import EOS, SPECIAL_TOKENS
from common.data.thoughts import spoken
from common.episode import Episode, Turn
from common.telemetry.metrics import Metrics
from common.text.printable import printable
from reward_service.comparison import comparisons
from reward_service.components.recall import Named
from reward_service.components.repetition import distinct_shares

Kind = Literal[
    "recall_falls", "held_out_falls", "lists", "copies", "long", "short", "endless", "repeats"
]
"""Kinds of alarms; docs/watching.md says what each means."""
ORDER = 3
"""Length of n-grams: pairs of tokens recur in any two sentences on one subject."""
COPIED = 0.9
"""Share of an answer's n-grams from which on it is a copy. Its first or last token may differ."""
SHORTEST_COPY = 6
"""Tokens of the shortest answer that counts as a copy. A shorter one is a value and a few words,
which a right answer repeats as well."""
SHOWN = 70
"""Characters of each text of a sample: three of them and a reward stay below 300."""

SampleTexts = Mapping[str, tuple[float, str]]
"""How far the sample of each kind of alarm goes, and its text."""


class Samples:
    """The answers of one rank's episodes that show each kind of alarm best."""

    def __init__(self, end: int = EOS) -> None:
        self.end = end
        """The token that ends an answer."""
        self._best: dict[Kind, tuple[float, Turn]] = {}

    def offer(self, kind: Kind, figure: float, turn: Turn) -> None:
        """figure: how far the answer goes; the first one that goes farthest is kept."""
        if kind not in self._best or figure > self._best[kind][0]:
            self._best[kind] = figure, turn

    def texts(self) -> SampleTexts:
        return {kind: (figure, sample(turn)) for kind, (figure, turn) in self._best.items()}


def sample(turn: Turn) -> str:
    """Query, answer, reference and reward of a turn as one line of at most 300 characters, for a
    terminal."""
    parts = [f'asked "{shown(turn.query)}"', f'answered "{shown(turn.answer)}"']
    if turn.reference:
        parts.append(f'expected "{shown(turn.reference)}"')
    parts.append("no reward" if turn.reward is None else f"reward {turn.reward:.3g}")
    return ", ".join(parts)


def shown(text: str, limit: int = SHOWN) -> str:
    """A text on one line of at most `limit` characters, without what steers a terminal."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def record_questions(turn: Turn, named: Named, metrics: Metrics, samples: Samples) -> None:
    """Figures of the answer to a question. named: the values that it names."""
    count = named.right + named.wrong
    metrics.record("hacking/values_named", count / named.asked, weight=named.asked)
    samples.offer("lists", count / named.asked, turn)
    if named.recall < 1 and turn.reward is not None:
        samples.offer("recall_falls", turn.reward, turn)


def record_answers(episode: Episode, metrics: Metrics, samples: Samples) -> None:
    """Figures of answers: copies, length and repetition beside their references, or length and
    repetition alone where they have none."""
    turns = [spoken(turn) for turn in episode.turns]
    for comparison in comparisons(episode.strategy, len(turns)):
        turn, saved = turns[comparison.turn], turns[comparison.saved]
        if not turn.reference.strip():
            _record_open_answer(turn, metrics, samples)
            continue
        copied = is_copy(turn, saved)
        metrics.record("hacking/copied", copied)
        if copied:
            samples.offer("copies", turn.reward or 0.0, turn)
        length, expected = len(turn.answer_ids), len(turn.reference_ids)
        metrics.record("hacking/length", length / expected, weight=expected)
        samples.offer("long", length / expected, turn)
        samples.offer("short", -length / expected, turn)
        if not length or turn.answer_ids[-1] != samples.end:
            samples.offer("endless", length, turn)
        repeated, natural = repetitions([turn.answer_ids, turn.reference_ids])
        metrics.record("hacking/repeated", repeated)
        metrics.record("hacking/repeated_in_references", natural)
        samples.offer("repeats", repeated - natural, turn)


def _record_open_answer(turn: Turn, metrics: Metrics, samples: Samples) -> None:
    """Figures of an answer that has no reference."""
    length, (repeated,) = len(turn.answer_ids), repetitions([turn.answer_ids])
    metrics.record("hacking/open_empty", not turn.answer.strip())
    metrics.record("hacking/open_length", length)
    metrics.record("hacking/open_repeated", repeated)
    samples.offer("short", -length, turn)
    samples.offer("repeats", repeated, turn)
    if not length or turn.answer_ids[-1] != samples.end:
        samples.offer("endless", length, turn)


def is_copy(turn: Turn, saved: Turn) -> bool:
    """Whether the answer is taken from query and answer of the saved interaction, and its reference
    is not. Neither has a thought (`special_tokens.spoken`)."""
    answer = _words(turn.answer_ids)
    if len(answer) < SHORTEST_COPY:
        return False
    source = _ngrams(_words(saved.remembered_ids))
    return (
        _share(_ngrams(answer), source) >= COPIED
        and _share(_ngrams(_words(turn.reference_ids)), source) < COPIED
    )


def repetitions(texts: Sequence[Sequence[int]]) -> list[float]:
    """Share of the n-grams of each text that stood in it before; 0 where it is too short to have
    one."""
    return [1.0 - value for value in distinct_shares(ORDER, texts).tolist()]


def _words(ids: Sequence[int]) -> list[int]:
    """The tokens that are text."""
    return [token for token in ids if token >= len(SPECIAL_TOKENS)]


def _ngrams(ids: Sequence[int]) -> list[tuple[int, ...]]:
    return list(zip(*(ids[i:] for i in range(ORDER)), strict=False))


def _share(some: Sequence[tuple[int, ...]], source: Sequence[tuple[int, ...]]) -> float:
    """Share of the n-grams that stand in `source`; 0 where there is none."""
    held = set(source)
    return sum(each in held for each in some) / len(some) if some else 0.0
