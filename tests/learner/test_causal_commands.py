"""Commands on runs of causal models: prompts that are too long are counted, a checkpoint talks,
a reward model judges."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.episode import Interaction, Row, Task
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from common.text.printable import printable
from deploy.chat import open_session, talk
from deploy.plan_summary import plan_summary
from learner.evaluation.evaluate import evaluate_checkpoint
from learner.setup import prepare
from rollout.policies.play import play
from tests.causal_runs import causal_run
from tests.local_preferences import text_model
from tests.local_source import prepared
from tests.tiny_causal import opened, policy_of


class Noting(QuietProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def test_prompts_that_are_too_long_are_counted_in_a_plan_and_in_a_run(tmp_path: Path) -> None:
    run = causal_run(tmp_path)
    long = "".join('{"prompt": "' + "film " * (21 + k) + '"}\n' for k in range(3))
    (tmp_path / "held.jsonl").write_text('{"prompt": "the film"}\n' + long)
    settings = run.model_dump()
    settings["data"] |= {"eval": [str(tmp_path / "held.jsonl")]}
    run = Run.model_validate(settings)
    told = "1 prompts to train on and 3 held out have more than 20 tokens"
    corpus = load_corpus(run.data, run.seed)
    assert told in plan_summary(run, corpus)
    assert (len(corpus.train), len(corpus.eval)) == (24, 1)
    said = Noting()
    prepare(run, RunDirectory(run.runs, run.name), corpus, said)
    assert any(told in note for note in said.notes)


def test_a_causal_checkpoint_talks_and_remembers_as_its_policy_plays(tmp_path: Path) -> None:
    directory = prepared(causal_run(tmp_path))
    session, _ = open_session(directory.path(), None, 0.0, 0, None)
    asked = ("the film", "my dog is")
    shown = io.StringIO()
    talk(session, io.StringIO("\n".join([*asked, "/quit"]) + "\n"), Console(file=shown, width=200))
    model, held = opened(tmp_path / "model")
    row = Row("", "", tuple(Interaction(query, "") for query in asked))
    policy = policy_of(model, held, sampling={"max_new_tokens": 6})
    (episode,) = play(policy, [Task("t", row, 1, greedy=True)])
    first, second = (turn.answer for turn in episode.answered)
    assert first != second
    for answer in (first, second):
        assert printable(answer).strip() in shown.getvalue()


def test_a_reward_model_judges_in_evaluation(tmp_path: Path) -> None:
    settings = causal_run(tmp_path).model_dump()
    path = text_model(tmp_path / "judge", "bert", labels=("bad", "good"))
    settings["evaluation"]["judge"] = {"models": [{"name": "mood", "path": path, "label": "good"}]}
    directory = prepared(Run.model_validate(settings))
    wins = evaluate_checkpoint(directory.path())["prompts"]["wins"]
    assert wins["prompts"] == 4
    assert wins["left_out"] == 0
    assert wins["share"] == pytest.approx(0.5), "nothing is learnt: both sample the same answers"
    assert 0.0 < wins["score"] == wins["reference_score"] < 1.0
