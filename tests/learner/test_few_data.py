"""A run says at its start where it has few data."""

from __future__ import annotations

from pathlib import Path

from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from learner.data_warnings import data_warnings
from learner.setup import prepare
from tests.local_source import tiny_run


def told(run: Run) -> list[str]:
    """The warnings that a driver notes when it sets up the run, or takes it up again."""
    notes: list[str] = []

    class Noted(QuietProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    directory = RunDirectory(run.runs, run.name)
    prepare(run, directory, load_corpus(run.data, run.seed), Noted())
    return [note for note in notes if note.startswith("warning: few data")]


def test_a_new_run_with_few_conversations_says_so_once(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "sft", "memory_aware")
    count = len(load_corpus(run.data, run.seed).train)
    (warning,) = told(run)
    assert f"few data: {count} training conversations" in warning
    assert told(run) == []


def test_a_given_model_needs_no_warning(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "memory_aware")
    corpus = load_corpus(run.data, run.seed)
    assert data_warnings(run, corpus)
    model = run.model.model_copy(update={"checkpoint": "runs/earlier"})
    assert data_warnings(run.model_copy(update={"model": model}), corpus) == []
