"""Questions for people: from a file, from the episodes of a run, or from the rounds of a loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.checks import Fault, pair_faults, shape_faults
from common.data.readers import checked_records
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.text.counted import counted
from deploy.label.judgements import MOST_ANSWERS, Question

LABELS = "labels.jsonl"
QUESTIONS = "questions"
"""Folder of a loop's questions, a file for each round."""
MOST_EPISODES = 5000
"""The newest episodes of a run that answers are taken from."""


@dataclass(frozen=True)
class Source:
    name: str
    questions: list[Question]
    """In the order in which they are asked."""
    labels: Path
    """Where judgements are kept."""
    notes: list[str] = field(default_factory=list)
    """Questions that were left out, in a sentence."""


def open_source(where: str) -> Source:
    """The questions of a file, a run, or a loop with people (`engram feedback`).

    Raises InputError where there is nothing to ask.
    """
    path = Path(where)
    if path.is_file():
        return _deduplicated(path.name, file_questions(path), path.with_suffix(".labels.jsonl"))
    rounds = sorted((path / QUESTIONS).glob("*.jsonl"))
    if rounds:
        asked = [question for file in rounds for question in file_questions(file)]
        return _deduplicated(path.resolve().name, asked, path / LABELS)
    if (path / "feedback.yaml").is_file():
        raise InputError(where, "asks nothing yet: `engram feedback` writes its first questions")
    if not path.is_dir():
        raise InputError(where, "there is no such file and no such run")
    run = RunDirectory.existing(where)
    if run.local is None:
        raise InputError(where, "is not on this machine; copy its episodes here first")
    return _deduplicated(run.name, run_questions(run), run.local / LABELS)


def file_questions(path: Path) -> list[Question]:
    """Questions of a data file with {"prompt" or "query", "answers"?, "history"?}, or with compared
    answers (`chosen`, `rejected`)."""
    return [_question(record) for record in checked_records(path, _faults)]


def run_questions(run: RunDirectory) -> list[Question]:
    """Prompts of a run's newest episodes that were answered in several ways."""
    from rollout.journal.reader import episode_heads, find_episodes

    names = episode_heads(run)["id"].to_pylist()[:MOST_EPISODES]
    answers: dict[tuple[tuple[tuple[str, str], ...], str], list[str]] = defaultdict(list)
    for recorded in find_episodes(run, names):
        turns = recorded.episode.turns
        said = [(turn.query, turn.answer) for turn in turns]
        for number, turn in enumerate(turns):
            before = tuple(pair for pair in said[:number] if pair != ("", ""))
            told = answers[before, turn.query]
            if number and turn.query and turn.answer.strip() and turn.answer not in told:
                told.append(turn.answer)
    found = [
        Question(prompt, tuple(told[:MOST_ANSWERS]), history)
        for (history, prompt), told in answers.items()
        if len(told) > 1
    ]
    if not found:
        raise InputError(
            run.path("episodes"),
            "no prompt was answered in two ways; train with several samples of each task (rloo, "
            "grpo, rejection), or give a file of prompts with answers",
        )
    return found


def _deduplicated(name: str, questions: Iterable[Question], labels: Path) -> Source:
    """Each question once, and those that can be asked."""
    found = {question.id: question for question in questions}
    asked = [question for question in found.values() if len(question.answers) != 1]
    alike = len(found) - len(asked)
    if not asked:
        raise InputError(name, "holds nothing to ask: all answers to each prompt are the same")
    notes = [f"{counted(alike, 'prompts')} left out: all answers are the same"] if alike else []
    return Source(name, asked, labels, notes)


def _question(record: dict[str, Any]) -> Question:
    prompt = record["prompt"] if record.get("prompt") is not None else record["query"]
    answers = record.get("answers")
    if answers is None and record.get("chosen") is not None:
        answers = [record["chosen"], record["rejected"]]
    history = tuple((turn["query"], turn["answer"]) for turn in record.get("history") or ())
    return Question(prompt, tuple(dict.fromkeys(answers or ())), history)


def _faults(record: Any) -> Iterator[Fault]:
    known = isinstance(record, dict)
    name = "query" if known and record.get("prompt") is None and "query" in record else "prompt"
    pair = known and record.get("chosen") is not None
    required: dict[str, Any] = {name: str} | ({"chosen": str, "rejected": str} if pair else {})
    optional: dict[str, Any] = {"answers": list, "history": list, "group": str, "rounds": list}
    optional |= {"margin": (int, float, type(None))} if pair else {}
    faults = list(shape_faults(record, required, optional, ""))
    yield from faults
    if faults:
        return
    if not record[name].strip():
        yield name, "is empty"
    answers = record.get("answers") or []
    if len(answers) > MOST_ANSWERS:
        yield "answers", f"holds {len(answers)}; up to {MOST_ANSWERS} can be ranked side by side"
    for number, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            yield f"answers.{number}", "should be a text that is not empty"
    for number, turn in enumerate(record.get("history") or ()):
        for part, what in pair_faults(turn):
            yield f"history.{number}.{part}", what
