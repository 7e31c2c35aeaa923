"""Figures of memory, of idle actors, and conversations in the log: what a reader watches."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config.rewards import Rewards
from common.data.tokenizer import SPECIAL_TOKENS, ConversationTokenizer, train_tokenizer
from common.episode import Episode, Fact, Turn
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.jsonl import read_rows
from common.telemetry.metrics import Metrics
from learner.evaluation.evaluate import evaluation_tasks
from learner.evaluation.held_out import HeldOut
from learner.evaluation.transcripts import transcripts
from learner.parallel.group import OneRank
from learner.policies.memory_figures import effective_rank, slots_kept
from learner.policies.reactive import OBSERVED, ReactivePolicy
from learner.policies.table import CheckpointPolicy
from learner.recorder import Recorder
from reward_service.worker import RewardWorker
from rollout.policies.reactive.memory_files import unpacked
from tests.local_source import lively_model, played, run_here, tiny_corpus, tiny_run


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


def some_episodes(
    model: ReactiveTransformer, tokenizer: ConversationTokenizer, count: int
) -> list[Episode]:
    tasks = evaluation_tasks(tiny_corpus().train[:count], 3, erase=False)
    return played(model, tokenizer, tasks)


def observed(model: ReactiveTransformer, episodes: list[Episode]) -> dict[str, float]:
    metrics = Metrics()
    ReactivePolicy(model, OneRank()).observe(episodes, metrics)
    row = metrics.flush(1, "mrl")
    return {key: row[key] for key in row if key.startswith("memory/")}


# --- memory ---------------------------------------------------------------------------------------


def test_effective_rank_counts_directions_that_are_equally_strong() -> None:
    equal = torch.zeros(4, 8)
    for count in range(1, 5):
        equal[count - 1, count - 1] = 3.0
        assert float(effective_rank(equal)) == pytest.approx(count, rel=1e-5)
    uneven = torch.diag(torch.tensor([3.0, 1.0]))
    shares = np.array([0.75, 0.25])
    expected = float(np.exp(-(shares * np.log(shares)).sum()))
    assert float(effective_rank(uneven)) == pytest.approx(expected, rel=1e-5)
    assert float(effective_rank(torch.zeros(2, 2))) == pytest.approx(1.0)
    assert effective_rank(torch.randn(2, 3, 4, 5)).shape == (2, 3)


def test_a_slot_is_kept_that_changes_by_less_than_a_thousandth() -> None:
    old = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    new = torch.tensor([[3.004, 4.0], [3.006, 4.0], [0.0, 1.0]])
    assert slots_kept(old, new).tolist() == [True, False, False]


def test_figures_of_memory_are_those_of_writes_done_one_by_one(
    tokenizer: ConversationTokenizer,
) -> None:
    model = lively_model(tokenizer, layers=2, residual_gate="static", gate_activation="sigmoid")
    with torch.no_grad():
        model.memory_attention.layers[1].gate.weight += 1.0
    episodes = some_episodes(model, tokenizer, OBSERVED + 3)
    row = observed(model, episodes)
    assert observed(model, episodes[OBSERVED:]) == {}, "another rank has the sample"
    norms: dict[int, list[float]] = {}
    with torch.no_grad():
        for episode in episodes[:OBSERVED]:
            memory = model.initial_memory([episode.seed])
            for number, turn in enumerate(episode.turns, start=1):
                tokens = torch.tensor([turn.remembered_ids])
                mask = torch.ones_like(tokens, dtype=torch.bool)
                memory = model.remember(memory, model.encode(tokens, mask), mask)
                norms.setdefault(number, []).append(float(memory.flatten(2).norm(dim=-1).mean()))
    for writes in (1, 2, 4):
        assert row[f"memory/norm{{writes={writes}}}"] == pytest.approx(
            np.mean(norms[writes]), rel=1e-4
        )
        assert 1 <= row[f"memory/effective_rank{{writes={writes}}}"] <= 6
    assert "memory/norm{writes=3}" not in row
    gates = [
        float(layer.gate.weight.detach().sigmoid().mean())
        for layer in model.memory_attention.layers
    ]
    for layer, gate in enumerate(gates):
        assert row[f"memory/openness{{layer={layer}}}"] == pytest.approx(gate, rel=1e-5)
    assert gates[0] < gates[1]
    assert row["memory/slots_kept"] == 0.0


def test_a_shut_gate_keeps_all_slots_and_memory_without_gates_has_no_openness(
    tokenizer: ConversationTokenizer,
) -> None:
    shut = lively_model(
        tokenizer, residual_gate="static", gate_activation="sigmoid", gate_initial=-20.0
    )
    row = observed(shut, some_episodes(shut, tokenizer, 3))
    assert row["memory/slots_kept"] == 1.0
    assert row["memory/openness{layer=0}"] == pytest.approx(0.0, abs=1e-6)
    for shape in ({"residual_gate": "none"}, {"memory_attention": "last_interaction"}):
        bare = lively_model(tokenizer, **shape)
        row = observed(bare, some_episodes(bare, tokenizer, 3))
        assert not [key for key in row if key.startswith("memory/openness")]
        assert row["memory/slots_kept"] == 0.0
        assert row["memory/norm{writes=1}"] > 0


def test_drift_is_the_distance_from_the_memory_that_was_played(
    tokenizer: ConversationTokenizer,
) -> None:
    model = lively_model(tokenizer)
    tasks = evaluation_tasks(tiny_corpus().train[:2], 3, erase=False)
    tasks = [replace(task, return_memory=True) for task in tasks]
    one, other = played(model, tokenizer, tasks)
    assert observed(model, [one, other])["memory/drift"] < 1e-6
    assert one.final_memory is not None
    assert other.final_memory is not None
    mine, wrong = (unpacked(each.final_memory, model.config) for each in (one, other))
    expected = float((wrong - mine).norm() / wrong.norm())
    assert expected > 1e-3
    mixed_up = replace(one, final_memory=other.final_memory)
    assert observed(model, [mixed_up])["memory/drift"] == pytest.approx(expected, rel=1e-4)
    assert "memory/drift" not in observed(model, [replace(one, final_memory=None)])


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_of_mrl_has_every_figure_in_every_row(tmp_path: Path) -> None:
    directory, _ = run_here(tiny_run(tmp_path, "mrl"))
    rows = read_rows(directory)
    assert len(rows) == 6
    for row in rows:
        for name in ("values_named", "copied", "length", "repeated", "repeated_in_references"):
            assert row[f"hacking/{name}"] >= 0
        assert 0 <= row["memory/slots_kept"] <= 1
        assert row["memory/norm{writes=1}"] > 0
        assert 0 <= row["memory/drift"] < 1e-5
        assert 0 < row["time/idle_fraction{role=learner}"] < 1
    assert rows[0]["time/idle_fraction{role=learner}"] == pytest.approx(
        collecting(rows[0]), rel=1e-6
    )


def collecting(row: dict[str, float]) -> float:
    """The share of collecting in what the learner did until its first row."""
    seconds = {
        key: value
        for key, value in row.items()
        if key.startswith("time/phase_seconds") and key.endswith("role=learner}")
    }
    return seconds["time/phase_seconds{phase=collect,role=learner}"] / sum(seconds.values())


def test_a_reward_worker_is_idle_between_its_calls() -> None:
    worker = RewardWorker(Rewards(), np.eye(20, 8, dtype=np.float32), range(len(SPECIAL_TOKENS)))
    turns = (Turn([2, 9], [10, 3], [], [10, 3]), Turn([2, 11], [12, 3], [0.0], [12, 3]))
    episode = Episode("e", "t", 0, turns, 0)
    worker.judge([episode], {})
    worker.metrics()
    time.sleep(0.2)
    began = time.perf_counter()
    worker.judge([episode], {})
    busy = time.perf_counter() - began
    metrics = Metrics()
    metrics.merge(worker.metrics())
    idle = metrics.flush(1, "mrl")["time/idle_fraction{role=rewards}"]
    assert 0.2 / (0.2 + 2 * busy + 0.1) < idle < 1.0


# --- conversations in the log ---------------------------------------------------------------------


def test_transcripts_tell_what_was_told_asked_answered_and_whether_it_was_right() -> None:
    def turn(query: str, answer: str, reference: str, **more: object) -> Turn:
        return Turn([2], [3], [], [3], query=query, answer=answer, reference=reference, **more)

    asks = {"role": "recall", "facts": (Fact("Rex", 0),)}
    episode = Episode(
        "eval-memory-0",
        "t",
        0,
        (
            turn("my dog is Rex", "good\x1b[31m", "good"),
            turn("how is it?", "Fine.", "fine"),
            turn("what is my dog called?", "it is Rex", "Rex", **asks),
            turn("and now?", "Max or Rex", "Rex", **asks),
            turn("my cat is Luna", "what?", "good", role="remember"),
            turn("play", "north", ""),
        ),
        0,
    )
    text = transcripts([episode, *[replace(episode, id=f"more-{i}") for i in range(4)]], ["Max"])
    assert text.splitlines()[:8] == [
        "3 of 5 conversations",
        "  eval-memory-0",
        '    told "my dog is Rex good\ufffd[31m"',
        '    asked "how is it?", answered "Fine.": right',
        '    asked "what is my dog called?", answered "it is Rex": right',
        '    asked "and now?", answered "Max or Rex": wrong, expected "Rex"',
        '    told "my cat is Luna", answered "what?": wrong, expected "good"',
        '    asked "play", answered "north"',
    ]
    assert "more-1" in text
    assert "more-2" not in text


def test_an_evaluation_in_training_logs_conversations(
    tokenizer: ConversationTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, run = tiny_corpus(), tiny_run(tmp_path, "memory_aware")
    held = HeldOut(
        CheckpointPolicy("reactive", lively_model(tokenizer), tokenizer), corpus.eval, corpus.train
    )
    metrics = Metrics()
    with caplog.at_level(logging.INFO):
        held.measure(run, 4, metrics)
    (said,) = [record.message for record in caplog.records if "conversations" in record.message]
    assert said.startswith("3 of 4 conversations\n")
    row = metrics.flush(1, "memory_aware")
    asked = sum(len(turn.facts) for r in corpus.eval for turn in r.interactions)
    assert 0 < row["eval/facts"] <= asked


def test_what_is_kept_for_the_log_is_not_told_on_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run(tmp_path, "mrl")
    directory, _ = run_here(tiny_run(tmp_path, "sft"))
    recorder = Recorder(run, directory, None)
    with caplog.at_level(logging.INFO):
        recorder.keep("before_mrl: 3 of 60 conversations")
    recorder.close()
    assert recorder.report().notes == []
    assert [record.message for record in caplog.records] == ["before_mrl: 3 of 60 conversations"]
