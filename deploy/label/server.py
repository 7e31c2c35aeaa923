"""The page of `engram label`: what it asks for, and what it sends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.data.splits import text_hash
from common.failures import InputError
from deploy.label.agreement import agreement, agreement_sentence
from deploy.label.desk import Desk, judgement_of, labeller_of, order_of
from deploy.label.judgements import Judgement, broken_sentence
from deploy.label.questions import Source
from deploy.label.rows import rows_of
from deploy.pages.frame import Page

STATIC = Path(__file__).parent / "static"
LARGEST = 1_000_000
"""Bytes of what the page may send at once."""


def label_page(source: Source, desk: Desk) -> Page:
    """The page that asks the questions of a source."""

    def state(labeller: str, before: Judgement | None = None) -> dict[str, Any]:
        question, last = desk.next(labeller), desk.last(labeller)
        return {
            "name": source.name,
            "source": text_hash(str(source.labels.resolve())),
            "counts": desk.counts(labeller),
            "question": None if question is None else _shown(question, labeller),
            "last": None if last is None else last.id,
            "before": None if before is None else _before(before),
        }

    def judge(told: dict[str, Any]) -> dict[str, Any]:
        judgement = judgement_of(told, desk, round(time.time(), 3))
        desk.judge(judgement)
        return state(judgement.labeller)

    def undo(told: dict[str, Any]) -> dict[str, Any]:
        labeller = labeller_of(told.get("labeller"))
        name = told.get("id")
        return state(labeller, desk.undo(labeller, None if name is None else str(name)))

    def begin(told: dict[str, Any]) -> dict[str, Any]:
        return state(labeller_of(told.get("labeller")))

    def shown_progress(_: Request) -> Response:
        return JSONResponse(progress(source, desk))

    def posted(path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Route:
        async def respond(request: Request) -> Response:
            told = await _told(request)
            try:
                return JSONResponse(await run_in_threadpool(answer, told))
            except OSError as failure:
                return JSONResponse({"error": f"{source.labels}: not saved: {failure}"}, 507)

        return Route(f"/api/{path}", respond, methods=["POST"])

    return Page(
        f"{source.name} · engram label",
        STATIC,
        ["label.js"],
        ["label.css"],
        [
            Route("/api/progress", shown_progress),
            posted("next", begin),
            posted("judge", judge),
            posted("undo", undo),
        ],
    )


def progress(source: Source, desk: Desk) -> dict[str, Any]:
    """Figures on all that was judged so far."""
    labels = desk.file.labels
    told = list(labels.latest.values())
    rows = rows_of(told)
    asked = {question.id for question in source.questions}
    gone = len({each.question.id for each in told} - asked)
    notes = [*source.notes, broken_sentence(source.labels, labels), gone_sentence(gone)]
    people: dict[str, dict[str, int]] = {}
    for judgement in told:
        counts = people.setdefault(judgement.labeller, dict.fromkeys(COUNTED, 0))
        counts[judgement.verdict] += 1
        counts["written"] += judgement.written is not None
    return {
        "people": people,
        "agreement": agreement_sentence(agreement(told)),
        "preferences": len(rows.preferences),
        "demonstrations": len(rows.demonstrations),
        "questions": len(source.questions),
        "labels": str(source.labels),
        "notes": [note for note in notes if note],
    }


COUNTED = ("ranked", "all_bad", "skipped", "demonstration", "written")


def gone_sentence(gone: int) -> str | None:
    """A sentence on judgements whose question is no longer asked."""
    if not gone:
        return None
    return (
        f"{gone} judged {'question is' if gone == 1 else 'questions are'} no longer asked here, as "
        "prompt or answers changed; the judgements are kept, and exported with their texts"
    )


def _shown(question: Any, labeller: str) -> dict[str, Any]:
    order = order_of(question, labeller)
    return {
        "id": question.id,
        "prompt": question.prompt,
        "history": [{"query": query, "answer": answer} for query, answer in question.history],
        "answers": [question.answers[place] for place in order],
    }


def _before(judgement: Judgement) -> dict[str, Any]:
    """A judgement that was taken back, by place on the page."""
    ranks = judgement.ranks
    return {
        "verdict": judgement.verdict,
        "ranks": None if ranks is None else [ranks[place] for place in judgement.order],
        "written": judgement.written,
    }


async def _told(request: Request) -> dict[str, Any]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise InputError("request", f"is longer than {LARGEST:,} bytes")
    try:
        told = json.loads(body)
    except ValueError:
        raise InputError("request", "is no JSON") from None
    if not isinstance(told, dict):
        raise InputError("request", "should be one JSON object")
    return told
