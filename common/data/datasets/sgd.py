"""Schema-Guided Dialogue (Rastogi et al. 2020) as conversations that end where the system confirms
what it was told.

Each confirmation becomes one row: from the turn in which the user first said the earliest value to
be recalled, up to the confirmation, which is its only recall. A value counts only where memory is
needed and can be checked: said literally in a turn before, standing in the confirmation, not
standing in the query that triggers it. `Fact.said_in` is the last turn that said it: systems repeat
values along the way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.data import SgdData
from common.data.corpus import Corpus, carved
from common.data.decoding import parse_json, read_text
from common.data.splits import text_hash
from common.episode import Fact, Interaction, Row
from common.failures import InputError
from common.text.values import folded, place, value_words

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """One row and the dialogue it comes from: rows of one dialogue share turns, so they must stay
    in one split."""

    dialogue: str
    row: Row


def sgd_corpus(data: SgdData, seed: int) -> Corpus:
    """Conversations of at most `max_follow_ups`; the dev file is the test split."""
    train = _short(load(data.folder, "train"), data.max_follow_ups, "train")
    test = _short(load(data.folder, "dev"), data.max_follow_ups, "dev")
    keyed = [(text_hash(each.dialogue), each.row) for each in train]
    return carved(keyed, [confirmation.row for confirmation in test], data.eval_fraction)


def _short(found: list[Confirmation], max_follow_ups: int, part: str) -> list[Confirmation]:
    kept = [
        confirmation
        for confirmation in found
        if len(confirmation.row.interactions) <= max_follow_ups
    ]
    left_out = len(found) - len(kept)
    log.info(
        "SGD %s: %d of %d conversations left out for more than %d follow-ups",
        part,
        left_out,
        len(found),
        max_follow_ups,
    )
    return kept


def load(folder: str | Path, part: str) -> list[Confirmation]:
    """All confirmations of sgd_compact_{part}.jsonl.gz, of any length. part: train or dev."""
    path = Path(folder) / f"sgd_compact_{part}.jsonl.gz"
    if not path.is_file():
        raise InputError(str(path), "there is no such file")
    found: list[Confirmation] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            dialogue = parse_json(line)
            found += [Confirmation(dialogue["id"], row) for row in dialogue_rows(dialogue)]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as wrong:
            raise InputError(
                f"{path}, line {number}",
                f"is no dialogue of this data set: {type(wrong).__name__} {wrong}",
            ) from None
    return found


def dialogue_rows(dialogue: dict[str, Any]) -> Iterator[Row]:
    """Rows of one dialogue: `pairs` [[user, system]] and `confirms` [{turn, facts: [{value,
    said_in}]}]."""
    pairs: list[tuple[str, str]] = [(user, system) for user, system in dialogue["pairs"]]
    said = [(folded(user), folded(system)) for user, system in pairs]
    for confirm in dialogue["confirms"]:
        turn = confirm["turn"]
        last_said: dict[str, int] = {}
        first_told: list[int] = []
        for fact in confirm["facts"]:
            value = value_words(fact["value"])
            if not value:
                continue
            told = [
                i
                for i in range(fact["said_in"], turn)
                if any(place(spoken, value) for spoken in said[i])
            ]
            if told and place(said[turn][1], value) and not place(said[turn][0], value):
                last_said[fact["value"]] = told[-1]
                first_told.append(told[0])
        if last_said:
            start = min(first_told)
            facts = tuple(Fact(value, said_in - start) for value, said_in in last_said.items())
            follow_ups = [Interaction(user, system) for user, system in pairs[start + 1 : turn]]
            follow_ups.append(
                Interaction(pairs[turn][0], pairs[turn][1], role="recall", facts=facts)
            )
            yield Row(
                pairs[start][0],
                pairs[start][1],
                tuple(follow_ups),
                strategy="single" if len(follow_ups) == 1 else "cumulative",
            )
