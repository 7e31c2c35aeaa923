"""Whether the data of a run fit its model: `engram plan` and `train` ask here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from common.data.corpus import Corpus
from common.episode import Interaction
from common.failures import InputError

NAMED = 5
"""Interactions that a refusal names."""


class _Misfit(NamedTuple):
    tokens: int
    answer: str
    where: Callable[[], str]
    """Where it stands; looked up for those that are named."""


def require_fit(corpus: Corpus, tokenizer: Any, limit: int) -> None:
    """Every interaction must fit the model whole: one that is cut loses its end, and with it [EOS].
    Raises InputError that names the first ones that do not, by file and row, and counts all."""
    found = list(_misfits(corpus, tokenizer, limit))
    if not found:
        return
    first, others = found[0], found[1:NAMED]
    start = " ".join(first.answer.split()[:6])
    also = "".join(f"; {each.where()} ({each.tokens} tokens)" for each in others)
    more = f"; and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    raise InputError(
        first.where(),
        f"query and answer ({start!r} …) have {first.tokens} tokens, model.max_tokens is {limit}; "
        "raise it, or shorten them: `engram data divide` tells long turns in several, "
        f"data.layout=statement does it in bAbI{also}{more}",
    )


def _misfits(corpus: Corpus, tokenizer: Any, limit: int) -> Iterator[_Misfit]:
    seen: dict[tuple[str, str, str | None], int] = {}

    def too_long(turns: Iterable[tuple[Interaction, Callable[[], str]]]) -> Iterator[_Misfit]:
        for turn, where in turns:
            said = turn.query, turn.answer, turn.think
            if said not in seen:
                seen[said] = len(tokenizer.interaction(turn))
            if seen[said] > limit:
                yield _Misfit(seen[said], turn.answer, where)

    def new(turns: Iterable[tuple[Interaction, Any]]) -> Iterator[tuple[Interaction, Any]]:
        """Those that nothing before them says: conversations may be made of preferences, and pairs
        of conversations."""
        known = set(seen)
        return (
            each for each in turns if (each[0].query, each[0].answer, each[0].think) not in known
        )

    yield from too_long(_preferences(corpus))
    yield from too_long(new(_conversations(corpus)))
    yield from too_long(new(_pairs(corpus)))


Placed = Iterator[tuple[Interaction, Callable[[], str]]]
"""Interactions with where they stand."""


def _conversations(corpus: Corpus) -> Placed:
    def place(split: Literal["train", "eval"], i: int, k: int) -> str:
        return f"{corpus.place(split, i)}, interaction {k}"

    for i, row in enumerate(corpus.train):
        for k, turn in enumerate(row.turns):
            yield turn, partial(place, "train", i, k)
    for i, row in enumerate(corpus.eval):
        for k, turn in enumerate(row.turns):
            yield turn, partial(place, "eval", i, k)


def _preferences(corpus: Corpus) -> Placed:
    def place(split: str, i: int) -> str:
        return f"data.{split}, preference {i}"

    for split, held in (("train", corpus.preferences), ("eval", corpus.held_preferences)):
        for i, preference in enumerate(held, 1):
            for turn in (*preference.earlier, *preference.answered):
                yield turn, partial(place, split, i)


def _pairs(corpus: Corpus) -> Placed:
    def place(i: int) -> str:
        for source in corpus.files:
            if source.unit == "pairs":
                if i < len(source.records):
                    return f"{source.name}, row {i + 1}"
                i -= len(source.records)
        return f"data.pairs, pair {i + 1}"

    for i, pair in enumerate(corpus.pairs):
        yield pair, partial(place, i)
