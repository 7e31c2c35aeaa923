"""Files that a round of a loop with people learns from: all comparisons up to it for the reward
model, all demonstrations up to it for lm_sft. Each is written once, since a run that learns from it
may have begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common.config.feedback import Feedback
from common.data.conversations import load_pairs, save_pairs
from common.data.preferences import save_preferences
from common.episode import Interaction
from common.models.causal import open_tokenizer
from common.text.counted import counted
from deploy.feedback.answers import question_of, read_questions
from deploy.feedback.rounds import demonstrations_file, folder, preferences_file, questions_file
from deploy.label.judgements import read_labels
from deploy.label.questions import LABELS
from deploy.label.rows import Rows, rows_of


def write_rows(loop: Feedback, number: int, say: Callable[[str], None]) -> Path | None:
    """All comparisons and demonstrations up to a round; the file of the latter where some are
    new. say: takes a sentence on what is left out."""
    target, written = preferences_file(loop, number), demonstrations_file(loop, number)
    if not target.is_file():
        write_demonstrations(loop, number, say)
        beside = target.with_name(f"new-{target.name}")
        save_preferences(rows_up_to(loop, number).preferences, beside)
        beside.replace(target)
    return written if written.is_file() else None


def write_demonstrations(loop: Feedback, number: int, say: Callable[[str], None]) -> Path | None:
    """All demonstrations up to a round that fit the model; no file where none of them is new."""
    target = demonstrations_file(loop, number)
    rows = fitting(loop, rows_up_to(loop, number).demonstrations, say)
    files = [demonstrations_file(loop, earlier) for earlier in range(number)]
    before = [file for file in files if file.is_file()]
    known = load_pairs(before[-1]) if before else []
    if all(row in known for row in rows):
        target.unlink(missing_ok=True)
        return None
    beside = target.with_name(f"new-{target.name}")
    save_pairs(rows, beside)
    beside.replace(target)
    return target


def fitting(
    loop: Feedback, rows: Sequence[Interaction], say: Callable[[str], None]
) -> list[Interaction]:
    """Those that are no longer than the policy's longest sequence. One that somebody wrote too long
    must not stop the loop: nobody can shorten it any more."""
    settings = loop.policy.model.causal
    assert settings is not None, "the settings were checked"
    tokenizer = open_tokenizer(settings)
    longest = tokenizer.dialogue.max_tokens
    kept = [row for row in rows if len(tokenizer.interaction(row)) <= longest]
    if len(kept) < len(rows):
        say(
            f"{counted(len(rows) - len(kept), 'demonstrations')} longer than the policy's "
            f"{longest} tokens (model.causal.max_tokens) left out; they stay among the labels"
        )
    return kept


def rows_up_to(loop: Feedback, number: int) -> Rows:
    """Rows of all labels on questions up to a round."""
    asked = {
        question_of(each).id
        for earlier in range(number + 1)
        if questions_file(loop, earlier).is_file()
        for each in read_questions(loop, earlier)
    }
    labels = read_labels(folder(loop) / LABELS).latest.values()
    return rows_of(each for each in labels if each.question.id in asked)
