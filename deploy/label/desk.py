"""Who is asked what: deals questions to labellers and keeps what they say.

Two people never get the same question unless it is of the shared share, which all of them are
asked. All state follows from the label file, so a server that was killed goes on where it was.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from common.data.splits import fraction
from common.failures import InputError, nearest
from common.seeding import derive
from deploy.label.judgements import (
    VERDICTS,
    Judgement,
    LabelFile,
    Question,
    are_ranks,
    event_of,
)

HOLD_SECONDS = 1800.0
"""A question that somebody was shown so long ago goes to another, once no other is left."""
LONGEST_NAME = 60


class Desk:
    """Several threads may ask at once; each call is one step of all of them."""

    def __init__(
        self,
        questions: list[Question],
        file: LabelFile,
        shared: float = 0.0,
        clock: Callable[[], float] = time.time,
    ):
        """shared: share of the questions that every labeller is asked."""
        self.questions, self.file, self._clock = questions, file, clock
        self._by_id = {question.id: question for question in questions}
        self._shared = {name for name in self._by_id if fraction(name) < shared}
        self._lock = threading.Lock()

    def next(self, labeller: str) -> Question | None:
        """The question that the labeller is on; None where nothing is left for them."""
        with self._lock:
            return self._next(labeller)

    def judge(self, judgement: Judgement) -> None:
        """Keep a judgement; it is on disk when this returns. The same one again changes nothing.
        Raises InputError for one that does not fit its question, and OSError where the disk does
        not take it."""
        with self._lock:
            known = self.file.labels
            if any(each.id == judgement.id for each in known.judgements):
                return
            if judgement.id in known.undone:
                raise InputError("judgement", "was undone already")
            _require_fit(judgement)
            self.file.append(event_of(judgement))

    def last(self, labeller: str) -> Judgement | None:
        """The labeller's last judgement of a question that is still asked."""
        with self._lock:
            return self._last(labeller)

    def undo(self, labeller: str, name: str | None = None) -> Judgement | None:
        """Take the labeller's last judgement back and put its question to them again; None where it
        was taken back already. name: its id, so that a request that is sent again takes back no
        other. Raises InputError where there is none, or it is not the last."""
        with self._lock:
            if name is not None and name in self.file.labels.undone:
                return None
            last = self._last(labeller)
            if last is None or name not in (None, last.id):
                raise InputError("undo", "there is nothing to take back")
            now = self._clock()
            self.file.append({"event": "undone", "id": last.id, "labeller": labeller, "time": now})
            self._hold(labeller, last.question.id)
            return last

    def _last(self, labeller: str) -> Judgement | None:
        for judgement in reversed(self.file.labels.judgements):
            if judgement.labeller == labeller and self._is_asked(judgement):
                return judgement
        return None

    def question(self, name: str) -> Question:
        """The question of an id. Raises InputError where there is none."""
        if name not in self._by_id:
            raise InputError("question", f"{name!r} is none of the {len(self._by_id)} questions")
        return self._by_id[name]

    def counts(self, labeller: str) -> dict[str, int]:
        """Questions in all, those judged by anybody and by the labeller, and those skipped by
        them."""
        with self._lock:
            told = [each for each in self.file.labels.latest.values() if self._is_asked(each)]
        own = [each for each in told if each.labeller == labeller]
        return {
            "total": len(self.questions),
            "judged": len({each.question.id for each in told if each.verdict != "skipped"}),
            "own": sum(each.verdict != "skipped" for each in own),
            "skipped": sum(each.verdict == "skipped" for each in own),
        }

    def _is_asked(self, judgement: Judgement) -> bool:
        return judgement.question.id in self._by_id

    def _next(self, labeller: str) -> Question | None:
        latest = self.file.labels.latest
        done = {name for name, who in latest if who == labeller}
        judged = {name for (name, _), each in latest.items() if each.verdict != "skipped"}
        held = self.file.labels.holds.get(labeller)
        if held is not None and held[0] in self._by_id and held[0] not in done:
            return self._by_id[held[0]]
        others = {
            name: since
            for who, (name, since) in self.file.labels.holds.items()
            if who != labeller and (name, who) not in latest
        }
        waiting = []
        for question in self.questions:
            name = question.id
            if name in done or (name in judged and name not in self._shared):
                continue
            if name in others and name not in self._shared:
                waiting.append(question)
                continue
            return self._hold(labeller, name)
        overdue = [each for each in waiting if self._clock() - others[each.id] > HOLD_SECONDS]
        return self._hold(labeller, overdue[0].id) if overdue else None

    def _hold(self, labeller: str, name: str) -> Question:
        question = self._by_id[name]
        self.file.append(
            {
                "event": "shown",
                "labeller": labeller,
                "question": name,
                "order": list(order_of(question, labeller)),
                "time": self._clock(),
            }
        )
        return question


def order_of(question: Question, labeller: str) -> tuple[int, ...]:
    """The answer at each place of the page: random over questions and labellers, and the same when
    a question is shown again, also from a file with its answers in another order."""
    order = sorted(range(len(question.answers)), key=lambda place: question.answers[place])
    random.Random(derive(0, "order of answers", question.id, labeller)).shuffle(order)
    return tuple(order)


def judgement_of(told: dict[str, Any], desk: Desk, now: float) -> Judgement:
    """From what the page sends: ranks by place on the page. Raises InputError for anything that is
    no judgement."""
    name = labeller_of(told.get("labeller"))
    question = desk.question(str(told.get("question")))
    order = order_of(question, name)
    verdict = told.get("verdict")
    if verdict not in VERDICTS:
        raise InputError("verdict", f"{verdict!r} is no verdict; {nearest(str(verdict), VERDICTS)}")
    identity = told.get("id")
    if not isinstance(identity, str) or not 8 <= len(identity) <= 64:
        raise InputError("id", "should be a text of 8 to 64 characters, new for each judgement")
    shown = told.get("ranks") if verdict == "ranked" else None
    ranks: tuple[int, ...] | None = None
    if verdict == "ranked":
        if not are_ranks(shown, len(order)):
            raise InputError("ranks", f"{shown!r} does not rank {len(order)} answers from 1 on")
        assert shown is not None
        by_answer = dict(zip(order, shown, strict=True))
        ranks = tuple(by_answer[answer] for answer in range(len(order)))
    written = told.get("written")
    if written is not None and not isinstance(written, str):
        raise InputError("written", "should be a text")
    text = (written or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    return Judgement(identity, name, question, order, verdict, ranks, text or None, now)


def labeller_of(told: Any) -> str:
    """A labeller's name. Raises InputError for what cannot be one."""
    name = told.strip() if isinstance(told, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError("labeller", f"give a name of 1 to {LONGEST_NAME} characters")
    return name


def _require_fit(judgement: Judgement) -> None:
    answers = len(judgement.question.answers)
    if judgement.verdict == "demonstration" and answers:
        raise InputError("verdict", f"the question has {answers} answers to rank")
    if judgement.verdict in ("ranked", "all_bad") and not answers:
        raise InputError("verdict", "the question has no answers: it asks for a demonstration")
    if judgement.verdict == "demonstration" and judgement.written is None:
        raise InputError("written", "is empty: write what a good answer says")
