"""Judgements of people: one append-only file of JSON lines.

A line is an event: `shown` (a question was put to a labeller, with the order of its answers),
`judged`, or `undone`. A judgement holds the texts that were judged, so it stays whole whatever
becomes of the file or run that the question came from. A line is durable before anything follows
from it. A line that cannot be read, such as one that was cut off, is passed over and said; the
lines around it count.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from common.data.splits import text_hash
from common.failures import InputError
from common.storage.run_directory import sync

MOST_ANSWERS = 4
"""Answers that a person can hold side by side."""
Verdict = Literal["ranked", "all_bad", "skipped", "demonstration"]
VERDICTS: tuple[str, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Question:
    """A prompt with two to four answers to rank, or with none: it asks for a demonstration."""

    prompt: str
    answers: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    """(query, answer) of the interactions before."""

    @property
    def id(self) -> str:
        """Hash of its texts; the order of its answers is no part of it."""
        return text_hash(json.dumps([self.history, self.prompt, sorted(self.answers)]))


@dataclass(frozen=True)
class Judgement:
    """Judgement of one person on one question."""

    id: str
    """Made by the page, so that one that is sent again is not kept twice."""
    labeller: str
    question: Question
    order: tuple[int, ...]
    """Which answer stood at each place of the page."""
    verdict: Verdict
    ranks: tuple[int, ...] | None = None
    """Rank of each answer, 1 for the best; equal ranks are ties. None: not ranked."""
    written: str | None = None
    """A better answer, or a demonstration, by the labeller."""
    time: float = 0.0
    """Seconds since 1970."""


@dataclass
class Labels:
    """All that a label file says."""

    judgements: list[Judgement] = field(default_factory=list)
    """Those that were not undone, in the order in which they were made."""
    holds: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Question that each labeller was shown last, and when."""
    undone: set[str] = field(default_factory=set)
    broken: list[int] = field(default_factory=list)
    """Numbers of the lines that cannot be read."""

    def add(self, event: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no event."""
        kind, labeller = event["event"], event["labeller"]
        if not isinstance(labeller, str):
            raise TypeError("labeller")
        if kind == "shown":
            self.holds[labeller] = str(event["question"]), float(event["time"])
        elif kind == "judged":
            self.judgements.append(_judgement(event))
        elif kind == "undone":
            self.undone.add(event["id"])
            self.judgements = [each for each in self.judgements if each.id != event["id"]]
        else:
            raise ValueError(kind)

    @property
    def latest(self) -> dict[tuple[str, str], Judgement]:
        """The judgement that counts of each question and labeller: their last."""
        return {(each.question.id, each.labeller): each for each in self.judgements}


def read_labels(path: Path) -> Labels:
    """All events of a file; none of one that is not there. Raises InputError where the file holds
    lines, and none of them is an event."""
    labels = Labels()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return labels
    except OSError as failure:
        raise InputError(str(path), f"cannot be read: {failure.strerror}") from None
    lines = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        lines += 1
        try:
            labels.add(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            labels.broken.append(number)
    if lines and len(labels.broken) == lines:
        raise InputError(
            str(path), f"is no file of labels: none of its {lines} lines is a judgement; move it"
        )
    return labels


def broken_sentence(path: Path, labels: Labels) -> str | None:
    """A sentence on lines that cannot be read; None where all can."""
    if not labels.broken:
        return None
    shown = ", ".join(map(str, labels.broken[:5]))
    return (
        f"{path}: line {shown} was cut off or damaged and says nothing; the "
        f"{len(labels.judgements)} judgements on the other lines are kept"
    )


class LabelFile:
    """The file while one process writes it; another that tries is refused."""

    def __init__(self, path: Path):
        """Raises InputError where it cannot be written, or another process has it."""
        self.path = path
        try:
            fresh = not path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            if fresh:
                sync(path.parent)
        except OSError as failure:
            raise InputError(
                str(path), f"labels cannot be written there: {failure.strerror}"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise InputError(
                str(path), "another `engram label` writes these labels; use its page, or end it"
            ) from None
        self.labels = read_labels(path)
        # After a line that was cut off, the next one must not become its end.
        self._whole = not os.path.getsize(path) or path.read_bytes().endswith(b"\n")

    def append(self, event: dict[str, Any]) -> None:
        """Durable when it returns. Raises OSError where the disk does not take it."""
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        data = line if self._whole else b"\n" + line
        self._whole = False
        written = os.write(self._file, data)
        if written < len(data):
            raise OSError(f"only {written} of {len(data)} bytes were written")
        os.fsync(self._file)
        self._whole = True
        self.labels.add(json.loads(line))

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def event_of(judgement: Judgement) -> dict[str, Any]:
    """The line of a judgement."""
    record = asdict(judgement)
    question = record.pop("question")
    history = [{"query": query, "answer": answer} for query, answer in question["history"]]
    return {
        "event": "judged",
        **record,
        "question": judgement.question.id,
        "prompt": question["prompt"],
        "history": history,
        "answers": list(question["answers"]),
    }


def _judgement(event: dict[str, Any]) -> Judgement:
    question = Question(
        event["prompt"],
        tuple(event["answers"]),
        tuple((turn["query"], turn["answer"]) for turn in event["history"]),
    )
    ranks, count = event["ranks"], len(question.answers)
    texts = (
        question.prompt,
        *question.answers,
        *(part for turn in question.history for part in turn),
    )
    if (
        event["verdict"] not in VERDICTS
        or not all(isinstance(text, str) for text in texts)
        or not isinstance(event["written"], str | None)
        or sorted(event["order"]) != list(range(count))
        or (event["verdict"] == "ranked" and not are_ranks(ranks, count))
    ):
        raise ValueError("no judgement")
    return Judgement(
        str(event["id"]),
        event["labeller"],
        question,
        tuple(event["order"]),
        event["verdict"],
        None if ranks is None else tuple(ranks),
        event["written"],
        float(event["time"]),
    )


def are_ranks(ranks: Sequence[int] | None, count: int) -> bool:
    """Whether they rank `count` answers: each has one, from 1 on, without gaps."""
    return (
        isinstance(ranks, list | tuple)
        and len(ranks) == count
        and all(type(rank) is int for rank in ranks)
        and set(ranks) == set(range(1, max(ranks, default=0) + 1))
    )
