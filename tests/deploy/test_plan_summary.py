"""`engram plan` without --full: a run's data, stages, rewards and needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.run import Run
from common.data.conversations import pairs_to_read
from common.data.datasets.table import load_corpus
from common.data.tokenizer import train_tokenizer
from common.episode import Fact
from common.failures import InputError
from common.models.reactive.config import named_config
from common.storage.run_directory import RunDirectory
from deploy import data_plan
from deploy.cli import run_command
from deploy.data_plan import lengths, require_lengths, works
from deploy.estimate import START_SECONDS, operations_per_second, stage_seconds
from deploy.plan import plan_text
from deploy.plan_summary import plan_summary
from tests.local_preferences import preference_run, text_model

SUMMARY = {"name": "p", "status": "stopped", "wall_seconds": 1.0, "stages": [], "retention": {}}
CURRICULUM = [
    {"name": "short", "iterations": 5, "max_steps": 2},
    {"name": "changing", "iterations": 1, "max_steps": 4, "strategy": "long_term"},
]


def write(path: Path, *conversations: tuple[str, int, str]) -> str:
    records = [
        {
            "query": f"my dog is called {name}",
            "answer": "okay",
            "strategy": strategy,
            "interactions": [{"query": "what is it called?", "answer": f"it is {name}"}] * turns,
        }
        for name, turns, strategy in conversations
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(tmp_path: Path, **changes: Any) -> Run:
    train = [(f"Rex{i}", 1 + i % 4, "long_term" if i < 2 else "cumulative") for i in range(12)]
    base: dict[str, Any] = {
        "name": "p",
        "runs": str(tmp_path / "runs"),
        "data": {
            "kind": "rows",
            "train": [write(tmp_path / "train.jsonl", *train)],
            "eval": [write(tmp_path / "eval.jsonl", ("Bo", 1, "cumulative"), train[3])],
        },
        "tokenizer": {"vocab_size": 300},
        "model": {"max_tokens": 64},
        "stages": [
            {"stage": "sft", "steps": 6, "batch_size": 8},
            {"stage": "mrl", "episodes": 16, "curriculum": CURRICULUM},
        ],
    }
    return Run.model_validate(base | changes)


def summary(run: Run) -> str:
    return plan_summary(run, load_corpus(run.data, run.seed))


def test_stages_pass_over_what_takes_part_and_say_what_sits_out(tmp_path: Path) -> None:
    corpus = load_corpus(run(tmp_path).data, 0)
    sft, short, changing = works(run(tmp_path), corpus)
    assert len(sft.examples) == len(corpus.pairs) == sum(2 + i % 4 for i in range(12))
    assert sft.passes == pytest.approx(6 * 8 / len(corpus.pairs))
    assert (len(short.examples), short.passes) == (6, 5 * 16 / 6)
    assert short.left_out == "6 with more than 2 follow-ups"
    assert (len(changing.examples), changing.left_out) == (2, "10 of another strategy")


def test_reading_is_planned_by_its_pairs_of_turns(tmp_path: Path) -> None:
    planned = run(tmp_path, stages=[{"stage": "reading", "steps": 4, "batch_size": 8}])
    corpus = load_corpus(planned.data, 0)
    (reading,) = works(planned, corpus)
    pairs = pairs_to_read(corpus.train)
    assert reading.examples == pairs
    assert reading.passes == pytest.approx(4 * 8 / len(pairs))
    measured = lengths(planned, corpus)
    tokenizer = measured.tokenizer
    counts = [sum(len(tokenizer.interaction(turn)) for turn in pair) for pair in pairs]
    assert measured.of_example(reading.part, pairs) == pytest.approx(sum(counts) / len(counts))
    assert f"{len(pairs)} pairs of turns" in summary(planned)


def test_steps_are_a_bound_where_a_measurement_may_end_the_stage(tmp_path: Path) -> None:
    stage = {"stage": "sft", "steps": 6, "batch_size": 8}
    waiting = stage | {"until": {"train/accuracy_lm": 0.9}}
    assert "≤ 6" in summary(run(tmp_path, stages=[waiting]))
    assert "≤" not in summary(run(tmp_path, stages=[stage]))


def test_phases_are_shown_with_what_begins_them_and_what_never_learns(tmp_path: Path) -> None:
    first = {"after": 0, "train": ["memory_attention", "memory_cross_attention"]}
    later = {"after": 1000, "reward": 0.6, "train": ["decoder"], "learning_rate": 0.3}
    mrl = run(tmp_path).stages[-1].model_dump() | {"unfreeze": [first, later]}
    planned = run(tmp_path, stages=[{"stage": "sft"}, mrl])
    for text in (summary(planned), plan_text(planned)):
        lines = [" ".join(line.split()) for line in text.splitlines()]
        at = lines.index("Phases of stages.mrl")
        assert lines[at + 2 : at + 6] == [
            "start memory_attention, memory_cross_attention 1",
            "after 1,000 or at reward 0.6 decoder 0.3",
            "never encoder, embedding -",
            "",
        ]
    assert "Phases" not in summary(run(tmp_path))


def test_a_curriculum_step_that_no_conversation_fits_is_refused(tmp_path: Path) -> None:
    step = {"name": "none", "iterations": 1, "max_steps": 2, "strategy": "single"}
    stages = [{"stage": "mrl", "curriculum": [step]}]
    with pytest.raises(InputError, match="'none': none of 12 rows of strategy 'single' has at"):
        summary(run(tmp_path, stages=stages))


def test_lengths_are_those_of_the_tokenizer_that_the_run_trains(tmp_path: Path) -> None:
    corpus = load_corpus(run(tmp_path).data, 0)
    found = lengths(run(tmp_path), corpus)
    tokenizer = train_tokenizer(corpus.texts, 300)
    turns = [turn for row in (*corpus.train, *corpus.eval) for turn in row.turns]
    assert found.exact
    assert found.longest == max(len(tokenizer.interaction(turn)) for turn in turns)
    whole = sum(len(tokenizer.interaction(turn)) for turn in corpus.pairs)
    assert found.of_example("pairs", corpus.pairs) == pytest.approx(whole / len(corpus.pairs))


def test_an_interaction_that_does_not_fit_is_refused_or_where_that_is_an_estimate_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = run(tmp_path, model={"max_tokens": 12})
    with pytest.raises(
        InputError, match=r"\.jsonl, row \d+, interaction \d: query and answer .* have \d+ tok"
    ):
        summary(tight)
    monkeypatch.setattr(data_plan, "CHARACTERS", 300)
    corpus = load_corpus(tight.data, 0)
    found = lengths(tight, corpus)
    assert not found.exact
    warning = require_lengths(found, corpus, named_config("tiny", max_tokens=12))
    assert warning is not None
    assert warning.endswith(f"may have {found.longest} tokens, model.max_tokens is 12")
    assert "an estimate by a tokenizer of a sample" in summary(tight)


def test_what_a_reader_should_know_of_the_data_is_told(tmp_path: Path) -> None:
    text = summary(run(tmp_path))
    assert text.startswith(f"run p in {tmp_path}/runs/p (a new run)")
    assert "warning: 1 of 2 held-out conversations stand in the training data, too" in text
    assert "warning: few data: 12 training conversations" in text
    assert "mrl: short: conversations that sit out: 6 with more than 2 follow-ups" in text
    assert "2 held-out conversations\n" in text
    assert len(text.splitlines()) < 50


def test_data_without_facts_are_warned_of(tmp_path: Path) -> None:
    planned = run(tmp_path)
    assert "warning: the data name no facts: recall is neither" in summary(planned)
    corpus = load_corpus(planned.data, 0)
    first, *others = corpus.train
    asked = replace(first.interactions[-1], facts=(Fact("Rex0", 0),))
    asking = replace(first, interactions=(*first.interactions[:-1], asked))
    with_facts = replace(corpus, train=[asking, *others])
    assert "name no facts" not in plan_summary(planned, with_facts)


def test_rewards_are_shown_as_they_will_be_called(tmp_path: Path) -> None:
    own = {
        "functions": [{"name": "mine", "path": "mine.py:f", "arguments": {"word": "yes"}}],
        "endpoints": [{"name": "judge", "url": "http://judge:1/score?key=secret"}],
    }
    text = summary(run(tmp_path, rewards={"cumulative": own, "long_term": own}))
    assert "mine.py:f(turn, word='yes')" in text
    assert "http://judge:1/score" in text
    assert "secret" not in text
    assert [line.split()[0] for line in text.splitlines() if " bleu " in line] == [
        "cumulative",
        "long_term",
    ]


def test_time_grows_with_the_work_and_is_left_out_for_gpus(tmp_path: Path) -> None:
    config, here = named_config("tiny"), run(tmp_path)
    sft, mrl = here.stages
    short, long, played = (
        stage_seconds(here, stage, config, tokens, 1e9)
        for stage, tokens in ((sft, 1e5), (sft, 1e6), (mrl, 1e6))
    )
    assert short is not None
    assert long is not None
    assert played is not None
    assert (long - START_SECONDS) == pytest.approx(10 * (short - START_SECONDS))
    assert (played - START_SECONDS) == pytest.approx(2 * (long - START_SECONDS))
    assert 1e8 < operations_per_second() < 1e13
    on_gpus = run(tmp_path, learner={"gpus_per_rank": 1})
    assert stage_seconds(on_gpus, sft, config, 1e6, 1e9) is None
    assert "no estimate of time for GPUs" in summary(on_gpus)


def test_a_run_with_a_model_of_others_has_a_summary(tmp_path: Path) -> None:
    backbone = text_model(tmp_path / "backbone")
    text = summary(preference_run(tmp_path, {"stage": "reward_model", "backbone": backbone}))
    assert "preferences: " in text
    assert "reward_model" in text


def test_the_command_shows_all_settings_only_where_they_are_asked_for_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run(tmp_path).model_dump(mode="json")
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(settings))
    before = sorted(tmp_path.rglob("*"))
    assert run_command(["plan", str(config)]) == 0
    out = capsys.readouterr().out
    assert "router_loss" not in out
    assert "--full" in out
    assert run_command(["plan", str(config), "--full"]) == 0
    full = capsys.readouterr().out
    assert "router_loss" in full
    assert full.endswith(out[out.index("Rewards") :])  # times before it are measured
    assert sorted(tmp_path.rglob("*")) == before


def test_rules_of_a_curriculum_and_stages_of_short_conversations_are_shown(tmp_path: Path) -> None:
    ruled = CURRICULUM[0] | {"until": {"rollout/recall": 0.9}, "times": 2, "patience": 4}
    stages = [
        {"stage": "memory_aware", "steps": 6, "batch_size": 8, "max_follow_ups": 3},
        {"stage": "mrl", "episodes": 16, "curriculum": [ruled, CURRICULUM[1]]},
    ]
    planned = run(tmp_path, stages=stages)
    memory_aware, short, _ = works(planned, load_corpus(planned.data, 0))
    assert (len(memory_aware.examples), memory_aware.left_out) == (
        9,
        "3 with more than 3 follow-ups",
    )
    assert short.rule == (
        "until rollout/recall is 0.9, 2 times in a row; given up after 4 measurements without a "
        "new best"
    )
    assert f"mrl: short: {short.rule}" in summary(planned)


def test_a_run_that_is_there_is_named_with_the_settings_that_differ(tmp_path: Path) -> None:
    before = run(tmp_path)
    directory = RunDirectory(before.runs, before.name)
    directory.write_config(before)
    directory.write_text("summary.json", json.dumps(SUMMARY))

    def head(changed: Run) -> str:
        return plan_summary(changed, load_corpus(changed.data, changed.seed)).splitlines()[0]

    assert head(before).endswith("(stopped; the same command goes on with it)")
    longer = head(run(tmp_path, learner={"checkpoint_every": 7}))
    assert longer.endswith("goes on with it with other settings: learner.checkpoint_every)")
    refused = head(run(tmp_path, seed=9))
    assert "`train` refuses these settings for it: seed: is 9, the run in" in refused
