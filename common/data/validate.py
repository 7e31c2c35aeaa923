"""The strict look at a data file that `engram data validate` takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.data.checks import Fault, row_faults
from common.data.conversations import ROWS, row_from_dict
from common.data.facts import fact_faults, fact_warnings
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


def validate_rows(
    path: str | Path,
    max_answer_tokens: int | None = None,
    tokenizer: ConversationTokenizer | None = None,
    literal: bool = True,
) -> Validated:
    """The rows of a file if nothing is wrong with it; else BadRecords, whose `faults` are all that
    is, up to 20.

    max_answer_tokens: longest answer, thought and [EOS] included, as `tokenizer` counts it.
    literal: expected values stand in the turns that say them, `said_in` last; off for data whose
    values follow from what was said (yes, no, counts).
    """
    if (max_answer_tokens is None) != (tokenizer is None):
        raise ValueError("max_answer_tokens and tokenizer go together")
    warnings: list[InputError] = []
    places: list[str] = []

    def faults_of(record: Any) -> Iterator[Fault]:
        faults = list(row_faults(record)) or list(fact_faults(record, literal))
        yield from faults
        if not faults and tokenizer is not None and max_answer_tokens is not None:
            yield from _long_answers(row_from_dict(record), max_answer_tokens, tokenizer)

    def notice(where: str, record: Any) -> None:
        places.append(where)
        warnings.extend(
            InputError(f"{where}, field {field}", what) for field, what in fact_warnings(record)
        )

    rows = [row_from_dict(record) for record in checked_records(path, faults_of, notice, ROWS)]
    return Validated(rows, warnings, places)


def _long_answers(row: Row, limit: int, tokenizer: ConversationTokenizer) -> Iterator[Fault]:
    for turn, interaction in enumerate(row.turns):
        tokens = len(tokenizer.answer(interaction.answer, interaction.think))
        if tokens > limit:
            yield (
                ("answer" if turn == 0 else f"interactions.{turn - 1}.answer"),
                f"has {tokens} tokens, {limit} are allowed",
            )
