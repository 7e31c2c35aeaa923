"""Whether the data of a run fit its model: `engram plan` and `train` ask here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from common.data.corpus import Corpus
from common.data.division import stays_whole
from common.data.preferences import Preference
from common.episode import Interaction, Row
from common.failures import InputError

Split = Literal["train", "eval"]

NAMED = 5
"""Interactions that a refusal names."""


class _Said(NamedTuple):
    turn: Interaction
    where: Callable[[], str]
    """Where it stands; looked up for those that are named."""
    told: bool = False
    """Whether `engram data divide` tells its query in several turns."""


class _Misfit(NamedTuple):
    said: _Said
    tokens: int


def require_fit(corpus: Corpus, tokenizer: Any, limit: int) -> None:
    """Every interaction must fit the model whole: one that is cut loses its end, and with it [EOS].
    Raises InputError that names the first ones that do not, by file and row where the data are
    files, and counts all; it says what makes them shorter where something does."""
    found = list(_misfits(corpus, tokenizer, limit))
    if not found:
        return
    (first, tokens), others = found[0], found[1:NAMED]
    start = " ".join(first.turn.answer.split()[:6])
    hints = []
    if any(_divisible(each.said, tokenizer, limit) for each in found):
        hints.append("`engram data divide` tells long turns in several")
    if corpus.shorter and any(each.said.turn.role != "recall" for each in found):
        hints.append(f"{corpus.shorter} makes them shorter")
    advice = f": {', '.join(hints)}" if hints else ""
    also = "".join(f"; {each.said.where()} ({each.tokens} tokens)" for each in others)
    more = f"; and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    raise InputError(
        first.where(),
        f"query and answer ({start!r} …) have {tokens} tokens, model.max_tokens is {limit}; "
        f"raise it, or shorten them{advice}{also}{more}",
    )


def _divisible(said: _Said, tokenizer: Any, limit: int) -> bool:
    """Whether `engram data divide` makes it fit: its answer stays whole."""
    return said.told and len(tokenizer.interaction(replace(said.turn, query=""))) < limit


def _misfits(corpus: Corpus, tokenizer: Any, limit: int) -> Iterator[_Misfit]:
    seen: dict[tuple[str, str, str | None], int] = {}

    def too_long(spoken: Iterable[_Said]) -> Iterator[_Misfit]:
        for said in spoken:
            words = _words(said)
            if words not in seen:
                seen[words] = len(tokenizer.interaction(said.turn))
            if seen[words] > limit:
                yield _Misfit(said, seen[words])

    def new(spoken: Iterable[_Said]) -> Iterator[_Said]:
        """Those that nothing before them says: conversations may be made of preferences, and pairs
        of conversations."""
        known = set(seen)
        return (each for each in spoken if _words(each) not in known)

    yield from too_long(_preferences(corpus))
    yield from too_long(new(_conversations(corpus)))
    yield from too_long(new(_pairs(corpus)))


def _words(said: _Said) -> tuple[str, str, str | None]:
    return said.turn.query, said.turn.answer, said.turn.think


def _conversations(corpus: Corpus) -> Iterator[_Said]:
    def place(split: Split, i: int, k: int) -> str:
        return f"{corpus.place(split, i)}, interaction {k}"

    of_files = any(source.unit == "conversations" for source in corpus.files)
    splits: tuple[tuple[Split, list[Row]], ...] = ("train", corpus.train), ("eval", corpus.eval)
    for split, rows in splits:
        for i, row in enumerate(rows):
            for k, turn in enumerate(row.turns):
                told = of_files and stays_whole(row.strategy, k, turn) is None
                yield _Said(turn, partial(place, split, i, k), told)


def _preferences(corpus: Corpus) -> Iterator[_Said]:
    splits: tuple[tuple[Split, list[Preference]], ...] = (
        ("train", corpus.preferences),
        ("eval", corpus.held_preferences),
    )
    for split, preferences in splits:
        for i, preference in enumerate(preferences):
            for turn in (*preference.earlier, *preference.answered):
                yield _Said(turn, partial(corpus.place_of_preference, split, i))


def _pairs(corpus: Corpus) -> Iterator[_Said]:
    def place(i: int) -> str:
        for source in corpus.files:
            if source.unit == "pairs":
                if i < len(source.records):
                    return f"{source.name}, row {i + 1}"
                i -= len(source.records)
        return f"data.pairs, pair {i + 1}"

    for i, pair in enumerate(corpus.pairs):
        yield _Said(pair, partial(place, i))
