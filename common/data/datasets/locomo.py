"""LoCoMo (Maharana et al. 2024, arXiv 2402.17753) as conversations.

A record is one of the list in `locomo10.json` of `snap-research/locomo`: `{"conversation":
{"session_1": [{"speaker", "dia_id", "text", "blip_caption"?}], "session_1_date_time"?, …}, "qa":
[{"question", "answer"?, "evidence", "category"}]}`. What two people say in their sessions
is told in turns, each message after its speaker's name; the date of a session stands before its
first message. Then all questions are asked, one after another.

The answer to a question is a fact where it has at most `max_answer_words` words and its evidence
names messages: it was said in the last of them. Values often only follow ("last Friday"), so
converted files pass `engram data validate` with `--inferred` only. Questions of category 5 ask for
what was never said; they and questions without an answer are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.config.conversion import LongFiles
from common.data.checks import Fault, kind_of
from common.data.datasets.recalled import Told, recall_row, rows_of
from common.data.datasets.synth import ACKNOWLEDGE
from common.data.leftovers import Leftovers
from common.episode import Row
from common.failures import InputError

ADVERSARIAL = 5
"""Category of questions for what was never said."""
NEVER_SAID = "questions for what was never said"
NO_ANSWER = "questions without an answer"
IMAGES = "images, of which the caption is told"
_SESSION = re.compile(r"session_(\d+)")


def locomo_rows(sources: Sequence[str], settings: LongFiles, left: Leftovers) -> list[Row]:
    """A row for each record. Raises InputError where a file is missing or wrong."""
    return rows_of(sources, _faults, lambda where, record: _row(where, record, settings, left))


def _row(where: str, record: Mapping[str, Any], settings: LongFiles, left: Leftovers) -> Row:
    told = Told(settings.max_words, where, left)
    said_in: dict[str, int] = {}
    for date, messages in _sessions(record["conversation"]):
        before = f"({date}) " if date else ""
        for first, second in _in_twos(messages):
            answer = _text(second, where, left) if second else ACKNOWLEDGE
            turns = told.add(before + _text(first, where, left), answer)
            before = ""
            for message in (first, second):
                if message is not None:
                    said_in[str(message.get("dia_id"))] = turns[-1]
    if not told.turns:
        raise InputError(f"{where}, field conversation", "holds no session with a message")
    asked = []
    for question in record["qa"]:
        if question.get("category") == ADVERSARIAL:
            left.add(NEVER_SAID, where)
        elif question.get("answer") is None or not str(question["answer"]).strip():
            left.add(NO_ANSWER, where)
        else:
            evidence = [said_in[name] for name in _evidence(question) if name in said_in]
            asked.append(
                told.asked(
                    question["question"],
                    str(question["answer"]),
                    evidence,
                    settings.max_answer_words,
                )
            )
    if not asked:
        raise InputError(f"{where}, field qa", "holds no question with an answer")
    return recall_row(told, asked)


def _sessions(
    conversation: Mapping[str, Any],
) -> Iterator[tuple[str | None, Sequence[Mapping[str, Any]]]]:
    numbers = sorted(int(found[1]) for name in conversation if (found := _SESSION.fullmatch(name)))
    for number in numbers:
        name = f"session_{number}"
        yield conversation.get(f"{name}_date_time"), conversation[name]


def _in_twos(
    messages: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Messages two by two; None where the last one has no partner."""
    for i in range(0, len(messages), 2):
        yield messages[i], messages[i + 1] if i + 1 < len(messages) else None


def _text(message: Mapping[str, Any], where: str, left: Leftovers) -> str:
    caption = message.get("blip_caption")
    if caption:
        left.add(IMAGES, where)
    return f"{message['speaker']}: {message['text']}" + (f" [{caption}]" if caption else "")


def _evidence(question: Mapping[str, Any]) -> list[str]:
    """Names of messages; the published file has some that hold several."""
    named = " ".join(map(str, question.get("evidence") or []))
    return re.findall(r"D\d+:\d+", named)


def _faults(record: Any) -> Iterator[Fault]:
    if not isinstance(record, dict):
        yield "record", f"should be an object of this data set, not {kind_of(record)}"
        return
    for name, kind in (("conversation", dict), ("qa", list)):
        if not isinstance(record.get(name), kind):
            yield name, "is missing" if name not in record else f"is {kind_of(record[name])}"
            return
    for name, session in record["conversation"].items():
        if not _SESSION.fullmatch(name):
            continue
        for j, message in enumerate(session if isinstance(session, list) else [session]):
            texts = isinstance(message, dict) and [message.get(key) for key in ("speaker", "text")]
            if not texts or not all(isinstance(text, str) for text in texts):
                yield f"conversation.{name}.{j}", "should be a message with speaker and text"
    for j, question in enumerate(record["qa"]):
        asks = isinstance(question, dict) and question.get("question")
        if not isinstance(asks, str) or not asks.strip():
            yield f"qa.{j}.question", "is missing"
