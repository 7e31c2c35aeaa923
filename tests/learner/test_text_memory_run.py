"""A run whose policy writes its memory: taught from conversations, learnt by reinforcement, stopped
and resumed, replayed and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config.run import Run
from common.episode import Task
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from deploy.episodes import Choice, chosen, episodes_text
from deploy.plan import plan_text
from deploy.view.conversation import conversation
from deploy.view.watched import WatchedRun
from learner.evaluation.evaluate import evaluate_checkpoint
from learner.policies.table import open_policy
from learner.recorder import Recorder
from learner.setup import newest
from learner.stages.remembered import conversation_examples, within_budget
from rollout.journal.journal import Journal
from rollout.policies.play import play
from tests.local_source import StoppingRecorder, comparable_rows, run_here, tiny_corpus
from tests.tiny_causal import opened, write_model

WRITES = {"tokens": 40, "read": "M:{memory}\n", "write": "M:{memory} Q:{query} A:{answer} N:"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", changes={"n_positions": 256})


def writing_run(folder: Path, runs: Path, name: str = "tm", **algorithm: Any) -> Run:
    used = algorithm or {"grpo": {"samples": 2, "compare": "episode"}}
    curriculum = [
        {"name": "short", "iterations": 1, "max_steps": 2},
        {"name": "held", "iterations": 2, "max_steps": 3, "reset_probability": 0.5},
    ]
    return Run.model_validate(
        {
            "name": name,
            "runs": str(runs),
            "seed": 5,
            "data": {"kind": "synth", "train": 24, "eval": 6, "steps": [1, 2, 3], "values": 4},
            "model": {"causal": {"path": str(folder), "text_memory": WRITES}},
            "stages": [
                {"stage": "lm_sft", "steps": 2, "batch_size": 4, "examples": "conversations"},
                {"stage": "lm_rl", "episodes": 8, "curriculum": curriculum}
                | {"algorithm": next(iter(used))}
                | used,
            ],
            "rollout": {"workers": 1, "slots": 4, "sampling": {"max_new_tokens": 6}},
            "learner": {"checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 9},
            "evaluation": {"episodes": 4},
            "rewards": {
                "single": {"bleu": None, "cosine": None, "length": {"weight": 1.0}},
                "cumulative": {"bleu": None, "cosine": None, "length": {"weight": 1.0}},
            },
        }
    )


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_here(writing_run(folder, tmp_path_factory.mktemp("runs")))[0]


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    folder: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    run = writing_run(folder, tmp_path)

    def stopping(run: Run, directory: RunDirectory, step: int) -> Recorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = 4
        return recorder

    run_here(run, make_recorder=stopping)
    resumed, (source,) = run_here(run)
    assert source.carried > 0, "no episode began with a memory that was written before"
    assert comparable_rows(resumed) == comparable_rows(whole)
    for row in read_rows(whole)[2:]:
        assert row["ppo/log_prob_max_difference"] <= 1e-4
        assert row["memory/written_tokens"] > 0
        assert 0 <= row["memory/written_cut"] <= 1
        assert row["memory/written_empty"] >= 0


SECTIONS: dict[str, dict[str, Any]] = {
    "ppo": {"credit": "token", "kl_in": "reward", "no_end_penalty": 0.1},
    "a2c": {},
    "reinforce": {"mismatch": {"correct": "truncate"}},
    "rloo": {"samples": 2, "incomplete": "leave_out"},
    "rejection": {"samples": 2, "learn_queries": True},
}


def test_every_algorithm_learns_what_to_write(folder: Path, tmp_path: Path) -> None:
    held = {"name": "held", "iterations": 1, "max_steps": 3, "reset_probability": 0.5}
    stages = [
        {"stage": "lm_rl", "episodes": 6, "curriculum": [held], "algorithm": name, name: section}
        for name, section in SECTIONS.items()
    ]
    settings = writing_run(folder, tmp_path).model_dump() | {"stages": stages}
    rows = read_rows(run_here(Run.model_validate(settings))[0])
    for name, row in zip(SECTIONS, rows, strict=True):
        assert row[f"{name}/loss_policy"] is not None
        assert row["ppo/log_prob_max_difference"] <= 1e-4, name
        assert row["memory/written_tokens"] > 0
        turns = {key for key in row if key.startswith("critic/explained_variance_by_turn")}
        assert turns <= {f"critic/explained_variance_by_turn{{turn={turn}}}" for turn in (1, 2, 3)}


def test_evaluation_has_its_erased_control(whole: RunDirectory) -> None:
    found = evaluate_checkpoint(whole.path())["retention"]
    assert set(found["memory"]) == set(found["erased"])
    assert "all" in found["memory"]
    json.dumps(found)


def test_plan_says_what_is_remembered_and_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    assert "a text that it writes, of 40 tokens at most" in plan_text(writing_run(folder, tmp_path))
    settings = writing_run(folder, tmp_path).model_dump()
    settings["model"]["causal"]["text_memory"]["tokens"] = 200
    with pytest.raises(InputError, match=r"text_memory\.tokens: is 200: to rewrite a memory"):
        plan_text(Run.model_validate(settings))


def test_the_examples_write_and_answer_from_what_was_written(folder: Path) -> None:
    rows = tiny_corpus().train
    _, tokenizer = opened(folder, text_memory=WRITES)
    examples = conversation_examples(rows, tokenizer)
    assert len(examples) == 2 * sum(len(row.interactions) for row in rows)
    write, answer = examples[0], examples[1]
    told, first = rows[0].turns[:2]
    assert write.ids[: write.start] == tokenizer.write_prompt((), told.query, told.answer)
    held = tuple(write.ids[write.start : -1])
    assert tokenizer.decode(held) == told.query
    assert answer.ids[: answer.start] == tokenizer.memory.context(
        held, tokenizer.prompt(first.query)
    )
    _, window = opened(folder, interactions=1)
    kept = conversation_examples(rows, window)
    assert len(kept) == sum(len(row.interactions) for row in rows)
    assert kept[0].ids[: kept[0].start] == window.memory.context(
        (tuple(window.interaction(told)),), window.prompt(first.query)
    )


def test_the_oldest_statements_give_way_to_the_budget(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, tokenizer = opened(folder, text_memory=WRITES | {"tokens": 12})
    written, left_out = within_budget("my dog is Rex\nmy cat is Tom", tokenizer)
    assert (tokenizer.decode(written), left_out) == ("my cat is Tom", 1)
    conversation_examples(tiny_corpus().train, tokenizer)
    assert "are longer than model.causal.text_memory.tokens" in caplog.text


def test_what_was_written_is_shown_below_its_turn(whole: RunDirectory) -> None:
    assert whole.local is not None
    journal = Journal(whole.local)
    policy = open_policy(newest(whole)).playing(whole.run().rollout)
    tasks = [
        Task(f"0-000000-{i:05d}", row, seed=i, batch_index=i)
        for i, row in enumerate(tiny_corpus().train[:5])
    ]
    journal.dealt(0, [task.id for task in tasks])
    played = play(policy, tasks)
    journal.arrived(0, played)
    opened = chosen(whole, Choice())
    journal.seal()
    found, total = chosen(whole, Choice())
    assert opened == (found, total)
    one = found[0]
    told = one["turns"][0]["memory"]
    assert told is not None
    assert one["turns"][-1]["memory"] is None or one["turns"][-1]["memory"]["text"] is not None
    text = episodes_text(found, total, Choice())
    first = (told["text"].splitlines() or ["(nothing)"])[0]
    assert f"    memory   {first}" in text
    assert ("(cut at the budget)" in text) == any(
        turn["memory"] and turn["memory"]["cut"] for each in found for turn in each["turns"]
    )
    watched = WatchedRun(whole, "tm")
    watched.refresh()
    shown = conversation(watched, one["id"])
    assert shown is not None
    assert shown["turns"][0]["memory"] == told
