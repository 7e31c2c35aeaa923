"""LongMemEval (Wu et al. 2024, arXiv 2410.10813) as conversations.

A record is `{"question_id", "question", "answer", "question_date"?, "haystack_dates"?,
"haystack_sessions": [[{"role", "content", "has_answer"?}]]}`, as the README of
`xiaowu0162/LongMemEval` describes: sessions of a user with an assistant, then a question. Sessions
follow one another in one conversation; the date of each stands before its first query, and the
question's before the question.

The answer is a fact where it has at most `max_answer_words` words and a turn is marked to hold it:
it was said in the last such turn. Longer answers, and questions that cannot be answered
(`question_id` ends with `_abs`), have no facts: they are measured by agreement alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.config.conversion import LongFiles
from common.data.checks import Fault, kind_of
from common.data.datasets.recalled import Told, recall_row, rows_of
from common.data.leftovers import Leftovers
from common.episode import Row
from common.failures import InputError

UNPAIRED = "messages of a session without a partner"
NOT_ANSWERABLE = "questions that cannot be answered: no facts"


def longmemeval_rows(sources: Sequence[str], settings: LongFiles, left: Leftovers) -> list[Row]:
    """A row for each question. Raises InputError where a file is missing or wrong."""
    return rows_of(sources, _faults, lambda where, record: _row(where, record, settings, left))


def _row(where: str, record: Mapping[str, Any], settings: LongFiles, left: Leftovers) -> Row:
    told = Told(settings.max_words, where, left)
    dates = record.get("haystack_dates") or []
    evidence: list[int] = []
    for number, session in enumerate(record["haystack_sessions"]):
        before = f"({dates[number]}) " if number < len(dates) else ""
        for query, answer, marked in _pairs(session, where, left):
            turns = told.add(before + query, answer)
            before = ""
            if marked:
                evidence += turns
    if not told.turns:
        raise InputError(f"{where}, field haystack_sessions", "holds no message and its answer")
    if str(record["question_id"]).endswith("_abs"):
        left.add(NOT_ANSWERABLE, where)
        evidence = []
    date = record.get("question_date")
    question = f"({date}) {record['question']}" if date else record["question"]
    asked = told.asked(question, str(record["answer"]), evidence, settings.max_answer_words)
    return recall_row(told, [asked])


def _pairs(
    session: Sequence[Mapping[str, Any]], where: str, left: Leftovers
) -> Iterator[tuple[str, str, bool]]:
    """(query, answer, whether one of them holds the answer to the question)."""
    asked: Mapping[str, Any] | None = None
    for message in session:
        if message["role"] == "user":
            if asked is not None:
                left.add(UNPAIRED, where)
            asked = message
        elif asked is None:
            left.add(UNPAIRED, where)
        else:
            marked = any(each.get("has_answer") for each in (asked, message))
            if asked["content"].strip() and message["content"].strip():
                yield asked["content"], message["content"], marked
            else:
                left.add(UNPAIRED, where, 2)
            asked = None
    if asked is not None:
        left.add(UNPAIRED, where)


def _faults(record: Any) -> Iterator[Fault]:
    if not isinstance(record, dict):
        yield "record", f"should be an object of this data set, not {kind_of(record)}"
        return
    for name in ("question_id", "question", "answer", "haystack_sessions"):
        if record.get(name) is None:
            yield name, "is missing"
        elif name == "haystack_sessions" and not isinstance(record[name], list):
            yield name, f"should be a list of sessions, not {kind_of(record[name])}"
        elif name == "haystack_sessions":
            yield from _session_faults(record[name])
        elif not str(record[name]).strip():
            yield name, "is empty"


def _session_faults(sessions: Sequence[Any]) -> Iterator[Fault]:
    for i, session in enumerate(sessions):
        for j, message in enumerate(session if isinstance(session, list) else [session]):
            well = (
                isinstance(message, dict)
                and message.get("role") in ("user", "assistant")
                and isinstance(message.get("content"), str)
            )
            if not well:
                at = f"haystack_sessions.{i}.{j}"
                yield at, "should be a message with role (user, assistant) and content"
