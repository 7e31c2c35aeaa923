"""Judgements as Label Studio JSON, and back: tasks with the answers as `items`, and annotations by
the tags Ranker (a bucket for each rank, so ties are two items in one), Choices and TextArea.

docs/feedback.md has the labelling configuration that these names belong to.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.data.decoding import parse_json, read_text
from common.failures import InputError
from deploy.label.judgements import Judgement, Question

BUCKETS = ("first", "second", "third", "fourth")
UNKNOWN = "unknown"
"""Labeller of an annotation that names none."""


def to_label_studio(judgements: Iterable[Judgement]) -> list[dict[str, Any]]:
    """A task for each question, with an annotation for each person who judged it."""
    tasks: dict[str, dict[str, Any]] = {}
    for judgement in judgements:
        question = judgement.question
        task = tasks.setdefault(
            question.id,
            {
                "data": {
                    "question": question.id,
                    "prompt": question.prompt,
                    "history": [
                        {"query": query, "answer": answer} for query, answer in question.history
                    ],
                    "items": [
                        {"id": str(place), "body": answer}
                        for place, answer in enumerate(question.answers)
                    ],
                },
                "annotations": [],
            },
        )
        # Two who were shown a question may have had its answers in another order.
        places = [each["body"] for each in task["data"]["items"]]
        task["annotations"].append(_annotation(judgement, places))
    return list(tasks.values())


def _annotation(judgement: Judgement, places: Sequence[str]) -> dict[str, Any]:
    answers = judgement.question.answers
    results: list[dict[str, Any]] = []
    if judgement.ranks is not None:
        buckets: dict[str, list[str]] = {name: [] for name in BUCKETS[: len(answers)]}
        for rank, answer in sorted(zip(judgement.ranks, answers, strict=True)):
            buckets[BUCKETS[rank - 1]].append(str(places.index(answer)))
        results.append(_result("rank", "items", "ranker", {"ranker": buckets}))
    if judgement.verdict == "all_bad":
        results.append(_result("verdict", "prompt", "choices", {"choices": ["all bad"]}))
    if judgement.written is not None:
        results.append(_result("written", "prompt", "textarea", {"text": [judgement.written]}))
    return {
        "result": results,
        "was_cancelled": judgement.verdict == "skipped",
        "created_at": datetime.fromtimestamp(judgement.time, UTC).isoformat(),
        "labeller": judgement.labeller,
        "judgement": judgement.id,
        "shown": [places.index(answers[answer]) for answer in judgement.order],
    }


def _result(name: str, to: str, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex[:10],
        "from_name": name,
        "to_name": to,
        "type": kind,
        "value": dict(value),
    }


def from_label_studio(path: Path, labeller: str | None) -> list[Judgement]:
    """The judgements of an export. labeller: of annotations that name nobody.

    Raises InputError naming the first task that cannot be read.
    """
    try:
        tasks = parse_json(read_text(path))
    except ValueError as broken:
        raise InputError(str(path), f"is no JSON: {broken}") from None
    if not isinstance(tasks, list):
        raise InputError(str(path), "should be a list of Label Studio's tasks")
    found: list[Judgement] = []
    for number, task in enumerate(tasks, 1):
        try:
            found += _judgements(task, labeller)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as wrong:
            raise InputError(
                f"{path}, task {number}", f"is not as engram writes it ({wrong!r})"
            ) from None
    return found


def _judgements(task: Mapping[str, Any], labeller: str | None) -> list[Judgement]:
    data = task["data"]
    answers, keys = _answers(data)
    history = tuple((turn["query"], turn["answer"]) for turn in data.get("history") or ())
    question = Question(str(data["prompt"]), answers, history)
    found = []
    for annotation in task.get("annotations") or ():
        ranks, all_bad, written = None, False, None
        for result in annotation.get("result") or ():
            value = result["value"]
            if result["type"] == "ranker":
                ranks = _ranks(value["ranker"], keys)
            elif result["type"] == "pairwise":
                ranks = (1, 2) if value["selected"] == "left" else (2, 1)
            elif result["type"] == "choices":
                all_bad = all_bad or value["choices"] == ["all bad"]
            elif result["type"] == "textarea":
                text = value["text"]
                written = (text if isinstance(text, str) else "\n".join(text)).strip() or None
        verdict: Any = "skipped"
        if not answers and written:
            verdict = "demonstration"
        elif all_bad or ranks is not None:
            verdict = "all_bad" if all_bad else "ranked"
        shown = annotation.get("shown")
        order = tuple(shown) if shown is not None else tuple(range(len(answers)))
        if sorted(order) != list(range(len(answers))):
            raise ValueError(f"shown: {shown}")
        found.append(
            Judgement(
                str(annotation.get("judgement") or uuid.uuid4().hex),
                _who(annotation) or labeller or UNKNOWN,
                question,
                order,
                verdict,
                None if all_bad else ranks,
                written,
                _when(annotation),
            )
        )
    return found


def _answers(data: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """Answers of a task and the ids of their items; of a pairwise task, `text1` and `text2` or
    `answer1` and `answer2`."""
    for names in (("answer1", "answer2"), ("text1", "text2")):
        if all(name in data for name in names):
            return tuple(str(data[name]) for name in names), ["left", "right"]
    items = data.get("items") or []
    return tuple(str(each["body"]) for each in items), [str(each["id"]) for each in items]


def _ranks(told: Any, keys: Sequence[str]) -> tuple[int, ...]:
    """Rank of each item. told: ids from best to worst, or by bucket."""
    if isinstance(told, list):
        groups = [[each] for each in told]
    else:
        groups = [told[name] for name in BUCKETS if told.get(name)]
    places = {str(key): rank for rank, group in enumerate(groups, 1) for key in group}
    return tuple(places[key] for key in keys)


def _who(annotation: Mapping[str, Any]) -> str | None:
    if annotation.get("labeller"):
        return str(annotation["labeller"])
    by = annotation.get("completed_by")
    if isinstance(by, Mapping):
        by = by.get("email") or by.get("id")
    return None if by is None else str(by)


def _when(annotation: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(annotation["created_at"])).timestamp()
    except (KeyError, ValueError):
        return time.time()


def label_studio_text(judgements: Iterable[Judgement]) -> str:
    return json.dumps(to_label_studio(judgements), indent=1, ensure_ascii=False) + "\n"
