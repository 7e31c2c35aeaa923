"""The strict look at a data file that `engram data validate` takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.data.checks import Fault, row_faults
from common.data.records import checked_records
from common.data.rows import row_from_dict
from common.data.tokenizer import ConversationTokenizer
from common.episode import Row


def validate_rows(
    path: str | Path, max_answer_tokens: int | None = None, tokenizer: ConversationTokenizer | None = None, literal: bool = True
) -> list[Row]:
    """The rows of a file if all is right with it; else BadRecords, whose `faults` are all that is wrong, up to 20.

    max_answer_tokens: longest answer, thought and [EOS] included, as `tokenizer` counts it. literal: expected values must stand
    in the interaction that `said_in` names; off for data whose values follow from what was said (yes, no, counts).
    """
    if (max_answer_tokens is None) != (tokenizer is None):
        raise ValueError("max_answer_tokens and tokenizer go together")

    def faults_of(record: Any) -> Iterator[Fault]:
        faults = list(row_faults(record, literal))
        yield from faults
        if not faults and tokenizer is not None and max_answer_tokens is not None:
            yield from _long_answers(row_from_dict(record), max_answer_tokens, tokenizer)

    return [row_from_dict(record) for record in checked_records(path, faults_of)]


def _long_answers(row: Row, limit: int, tokenizer: ConversationTokenizer) -> Iterator[Fault]:
    for turn, interaction in enumerate(row.turns):
        tokens = len(tokenizer.answer(interaction.answer, interaction.think))
        if tokens > limit:
            yield ("answer" if turn == 0 else f"interactions.{turn - 1}.answer"), f"has {tokens} tokens, {limit} are allowed"
