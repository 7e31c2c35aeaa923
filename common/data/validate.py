"""The strict look at a data file that `engram data validate` takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.data.checks import Fault, row_faults
from common.data.conversations import ROWS, row_from_dict
from common.data.division import stays_whole
from common.data.facts import contradictions, fact_faults, fact_warnings
from common.data.readers import checked_records
from common.data.tokenizer import ConversationTokenizer
from common.episode import Row
from common.failures import InputError


class Validated(NamedTuple):
    """The rows of a file that has no faults, and what in it may not be meant so."""

    rows: list[Row]
    warnings: list[InputError]
    places: list[str]
    """Where each row stands: file and line, or row."""

    @property
    def placed(self) -> list[tuple[str, Row]]:
        return list(zip(self.places, self.rows, strict=True))


class Limits(NamedTuple):
    """How long what a file holds may be; None: as long as it is."""

    answer_tokens: int | None = None
    """Longest answer, thought and [EOS] included."""
    tokens: int | None = None
    """Longest interaction, as memory is written with it."""
    follow_ups: int | None = None


UNLIMITED = Limits()


def validate_rows(
    path: str | Path,
    limits: Limits = UNLIMITED,
    tokenizer: ConversationTokenizer | None = None,
    literal: bool = True,
) -> Validated:
    """The rows of a file if nothing is wrong with it; else BadRecords, whose `faults` are all that
    is, up to 20.

    limits: tokens are counted as `tokenizer` does. literal: expected values stand in the turns that
    say them, `said_in` last; off for data whose values follow from what was said (yes, no, counts).
    """
    counts = limits.answer_tokens is not None or limits.tokens is not None
    if counts != (tokenizer is not None):
        raise ValueError("limits of tokens and a tokenizer go together")
    warnings: list[InputError] = []
    places: list[str] = []

    def faults_of(record: Any) -> Iterator[Fault]:
        faults = list(row_faults(record, limits.follow_ups, "--max-follow-ups"))
        faults = faults or list(fact_faults(record, literal))
        yield from faults
        if not faults and tokenizer is not None:
            yield from _too_long(row_from_dict(record), limits, tokenizer)

    def notice(where: str, record: Any) -> None:
        places.append(where)
        warnings.extend(
            InputError(f"{where}, field {field}", what) for field, what in fact_warnings(record)
        )
        for turn, what in contradictions(row_from_dict(record).turns):
            at = f"{where}, field interactions.{turn - 1}.facts"
            warnings.append(InputError(at, f"contradict one another: {what}"))

    rows = [row_from_dict(record) for record in checked_records(path, faults_of, notice, ROWS)]
    return Validated(rows, warnings, places)


def _too_long(row: Row, limits: Limits, tokenizer: ConversationTokenizer) -> Iterator[Fault]:
    for turn, interaction in enumerate(row.turns):
        at = "" if turn == 0 else f"interactions.{turn - 1}."
        tokens = len(tokenizer.answer(interaction.answer, interaction.think))
        if limits.answer_tokens is not None and tokens > limits.answer_tokens:
            yield f"{at}answer", f"has {tokens} tokens, {limits.answer_tokens} are allowed"
        tokens = len(tokenizer.interaction(interaction))
        if limits.tokens is not None and tokens > limits.tokens:
            told = stays_whole(row.strategy, turn, interaction) is None
            advice = ": `engram data divide` tells long turns in several" if told else ""
            yield (
                f"{at}query",
                f"has {tokens} tokens with its answer, {limits.tokens} are allowed{advice}",
            )
