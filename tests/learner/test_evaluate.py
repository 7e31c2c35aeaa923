"""Retention: what counts as recalled, at what distance, beside controls that cannot remember."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.data.conversations import value_counts
from common.data.datasets.table import load_corpus
from common.data.tokenizer import SPECIAL_TOKENS, ConversationTokenizer, train_tokenizer
from common.episode import Episode, Interaction, Row, Strategy, Task
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from deploy.progress import LineProgress
from learner.checkpointing import checkpoint_model
from learner.evaluation.evaluate import (
    TRAINING_ROWS,
    carried_figures,
    evaluate,
    evaluate_checkpoint,
    evaluation_rows,
    evaluation_tasks,
    figures_of,
)
from learner.evaluation.match import reward_figure
from learner.setup import newest
from reward_service.compose import score_episodes
from rollout.policies.reactive.engine import ReactiveEngine
from tests.local_source import lively_model, played, prepared, run_here, tiny_corpus, tiny_run


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


def test_erased_memory_leaves_nothing_of_earlier_turns_in_the_answers(
    tokenizer: ConversationTokenizer,
) -> None:
    model = lively_model(tokenizer)
    rows = [row for row in tiny_corpus().train if len(row.interactions) == 3][:5]
    others = [
        replace(row, query="I have a cat called Luna", answer="that is a nice name") for row in rows
    ]

    def answers(rows: list[Row], erase: bool) -> list[list[list[int]]]:
        return [
            [list(turn.answer_ids) for turn in e.answered]
            for e in played(model, tokenizer, evaluation_tasks(rows, 3, erase))
        ]

    assert answers(rows, erase=True) == answers(others, erase=True)
    assert answers(rows, erase=False) != answers(others, erase=False)
    swapped = [
        replace(row, interactions=(row.interactions[1], row.interactions[0], row.interactions[2]))
        for row in rows
    ]
    assert [a[2] for a in answers(rows, erase=True)] != [a[1] for a in answers(swapped, erase=True)]


def test_both_controls_begin_with_the_same_memory_and_decode_greedily() -> None:
    rows = tiny_corpus().train[:3]
    memory, erased = evaluation_tasks(rows, 9, erase=False), evaluation_tasks(rows, 9, erase=True)
    assert [task.seed for task in memory] == [task.seed for task in erased]
    assert all(
        task.greedy and not task.teacher_forcing and task.initial_memory is None
        for task in memory + erased
    )
    assert [task.erase_memory for task in memory + erased] == [False] * 3 + [True] * 3
    assert len({task.id for task in memory + erased}) == 6


def test_evaluation_plays_the_same_rows_with_and_without_memory(
    tokenizer: ConversationTokenizer,
) -> None:
    model, rows = lively_model(tokenizer), tiny_corpus().eval
    erased: list[set[bool]] = []

    def play(tasks: list[Task]) -> list[Episode]:
        erased.append({task.erase_memory for task in tasks})
        return played(model, tokenizer, tasks)

    found = evaluate(play, rows, 1, value_counts(tiny_corpus().train))
    assert erased == [{False}, {True}]
    assert found.figures.keys() == found.erased.keys() == figures_of([]).keys()
    assert found.figures["recall"].totals() == found.erased["recall"].totals() == found.counts
    assert len(found.episodes) == len(rows)


def test_carried_conversations_begin_with_the_memory_that_the_one_before_left(
    tokenizer: ConversationTokenizer,
) -> None:
    model, rows = lively_model(tokenizer), tiny_corpus().eval
    calls: list[tuple[list[Task], list[Episode]]] = []

    def play(tasks: list[Task]) -> list[Episode]:
        calls.append((tasks, played(model, tokenizer, tasks)))
        return calls[-1][1]

    found = carried_figures(play, rows, 1, value_counts(tiny_corpus().train))
    (_, first), (tasks, episodes) = calls
    assert [task.row for task in tasks] == list(rows)
    left = [episode.final_memory for episode in first]
    assert [task.initial_memory for task in tasks] == [left[-1], *left[:-1]]
    assert len(set(left)) == len(left), "memories differ, so their order matters"
    fresh = [episode.memory_hash for episode in first]
    assert all(mine.memory_hash != other for mine, other in zip(episodes, fresh, strict=True))
    assert found["recall"].totals() == figures_of(first)["recall"].totals()


def test_evaluation_rows_are_spread_over_sources_strategies_and_lengths() -> None:
    def rows(count: int, source: str, steps: int, strategy: Strategy = "cumulative") -> list[Row]:
        turns = (Interaction("q?", "a"),) * steps
        return [
            Row(f"{source} {i}", "a", turns, strategy=strategy, source=source) for i in range(count)
        ]

    mixed = (
        rows(50, "task 1", 2)
        + rows(50, "task 1", 4)
        + rows(3, "task 5", 2)
        + rows(50, "task 8", 2, "long_term")
    )
    chosen = evaluation_rows(mixed, 23)
    assert Counter((row.source, len(row.interactions)) for row in chosen) == {
        ("task 1", 2): 5, ("task 1", 4): 5, ("task 5", 2): 3, ("task 8", 2): 10,
    }  # fmt: skip
    assert evaluation_rows(mixed[::-1], 23) == chosen
    assert Counter(evaluation_rows(mixed, 500)) == Counter(mixed)
    # More lengths than are drawn of a source do not crowd out the other sources.
    many = [
        row
        for source in ("a", "b", "c", "d")
        for steps in range(1, 61)
        for row in rows(2, source, steps)
    ]
    assert Counter(row.source for row in evaluation_rows(many, 100)) == dict.fromkeys("abcd", 25)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(tiny_run(tmp_path_factory.mktemp("evaluate"), "sft")).path()


def write_rows(path: Path, *facts: dict[str, object]) -> str:
    rows = [
        {
            "query": query,
            "answer": "okay",
            "interactions": [
                {"query": "what is it called?", "answer": "Rex", "facts": list(facts)}
            ],
        }
        for query in ("I have a dog called Rex", "my dog is called Rex")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_saved_checkpoint_is_evaluated(checkpoint: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {"value": "Rex", "said_in": 0})
    result = evaluate_checkpoint(checkpoint, data)
    assert result.keys() == {"retention", "match", "scores", "counts", "rewards", "warnings"}
    shares = {
        "memory",
        "erased",
        "most_frequent",
        "exact",
        "precision",
        "changed",
        "outdated",
        "by_order",
        "held",
    }
    assert result["retention"].keys() == shares | {"intervals", "counts"}
    assert result["retention"]["intervals"].keys() == result["retention"]["counts"].keys() == shares
    low, high = result["retention"]["intervals"]["memory"]["all"]
    assert low <= result["retention"]["memory"]["all"] <= high
    assert result["counts"] == {"1": 2, "all": 2}
    assert {"bleu", "cosine", "length", "recall", "total"} == result["rewards"].keys()
    assert json.loads(json.dumps(result)) == json.loads(
        json.dumps(evaluate_checkpoint(f"{checkpoint}/checkpoints/step_00000000", data))
    )


def test_without_data_the_conversations_that_the_run_held_out_are_evaluated(
    checkpoint: str,
) -> None:
    held = evaluation_rows(tiny_corpus().eval, 6)
    shown = io.StringIO()
    progress = LineProgress(shown, every=0)
    assert evaluate_checkpoint(checkpoint, progress=progress)["counts"]["all"] == sum(
        len(turn.facts) for row in held for turn in row.interactions
    )
    # Held-out conversations with memory kept and erased, and a sample of those that it learnt.
    lines = shown.getvalue().splitlines()
    total = 2 * len(held) + min(len(tiny_corpus().train), TRAINING_ROWS)
    assert lines[0] == f"evaluation: {total} conversations"
    assert lines[-1].startswith(f"evaluation {total}/{total}")
    assert len(lines) > 3


def test_evaluation_pays_by_the_measure_of_training(tmp_path: Path) -> None:
    """Values that only training data know make an answer wrong; cosines compare by the embedding
    that MRL began with."""
    mix = {"bleu": None, "length": None, "cosine": {"weight": 1.0}, "recall": {"weight": 1.0}}
    run = tiny_run(
        tmp_path, "sft", "mrl", rewards={"single": mix, "cumulative": mix, "long_term": mix}
    )
    directory, (source,) = run_here(run)
    last = newest(directory)
    model, _ = checkpoint_model(last)
    assert not np.array_equal(source.embedding, model.embedding.weight.detach().numpy())
    found = evaluate_checkpoint(directory.path())
    tasks = evaluation_tasks(
        evaluation_rows(load_corpus(run.data, run.seed).eval, run.evaluation.episodes),
        run.seed,
        erase=False,
    )
    played = ReactiveEngine(model.eval(), source.tokenizer, 4, run.rollout.sampling).run(tasks)
    special = tuple(range(len(SPECIAL_TOKENS)))
    as_trained = score_episodes(played, run.rewards, source.embedding, special, source.known)
    assert found["rewards"] == pytest.approx(reward_figure(as_trained).share())
    otherwise = score_episodes(
        played, run.rewards, model.embedding.weight.detach().numpy(), special, source.known
    )
    assert found["rewards"]["cosine"] != pytest.approx(reward_figure(otherwise).share()["cosine"])


@pytest.mark.parametrize("missing", ["endpoint", "function"])
def test_recall_is_measured_where_rewards_cannot_be(
    missing: str, checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "judge.py"
    file.write_text("def judge(turn):\n    return 1\n")
    own = {"endpoints": [{"name": "judge", "url": "http://127.0.0.1:1/"}]}
    if missing == "function":
        own = {"functions": [{"name": "judge", "path": f"{file}:judge"}]}
    where = prepared(
        tiny_run(tmp_path, "sft", rewards=dict.fromkeys(("single", "cumulative", "long_term"), own))
    ).path()
    file.unlink()
    found = evaluate_checkpoint(where)
    assert found["rewards"] == {}
    assert found["retention"] == evaluate_checkpoint(checkpoint)["retention"]
    assert (
        "Connection refused" if missing == "endpoint" else "there is no such file"
    ) in caplog.text


def test_a_model_is_evaluated_where_its_data_are_not_with_others_that_are_named(
    tmp_path: Path,
) -> None:
    for part in ("train", "eval"):
        write_rows(tmp_path / f"{part}.jsonl", {"value": "Rex", "said_in": 0})
    files = {part: [str(tmp_path / f"{part}.jsonl")] for part in ("train", "eval")}
    run = tiny_run(tmp_path, "sft", data={"kind": "rows", **files})
    where = prepared(run).path()
    assert evaluate_checkpoint(where)["counts"]["all"] == 2
    with (tmp_path / "eval.jsonl").open("a") as file:
        file.write(
            (tmp_path / "eval.jsonl").read_text().splitlines()[0].replace("Rex", "Bo") + "\n"
        )
    other = (
        r"^data\.eval: .*eval\.jsonl has 3 conversations, the run was started with 2; put "
        r"the data of .* back, or name .* with --data$"
    )
    with pytest.raises(InputError, match=other):
        evaluate_checkpoint(where)
    RunDirectory.existing(where).remove("data.json")
    assert evaluate_checkpoint(where)["counts"]["all"] == 3
    assert not RunDirectory.existing(where).exists("data.json")
    (tmp_path / "train.jsonl").unlink()
    data = write_rows(tmp_path / "elsewhere.jsonl", {"value": "Rex", "said_in": 0})
    assert evaluate_checkpoint(where, data)["retention"]["most_frequent"]["all"] == 1.0


def test_a_run_without_the_values_of_its_training_data_says_so(tmp_path: Path) -> None:
    directory = prepared(tiny_run(tmp_path, "sft"))
    directory.remove("values.json")
    with pytest.raises(InputError, match=r"has no values\.json: an earlier version made this run"):
        evaluate_checkpoint(directory.path())


def test_what_cannot_be_evaluated_is_named(checkpoint: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {"value": "Rex", "said_in": 0})
    with pytest.raises(InputError, match="nowhere: does not exist"):
        evaluate_checkpoint(str(tmp_path / "nowhere"), data)
    with pytest.raises(InputError, match="is not a checkpoint"):
        evaluate_checkpoint(str(tmp_path), data)


def test_conversations_without_facts_are_evaluated_by_references_and_rewards(
    checkpoint: str, tmp_path: Path
) -> None:
    result = evaluate_checkpoint(checkpoint, write_rows(tmp_path / "factless.jsonl"))
    assert result["counts"] == result["retention"]["memory"] == result["retention"]["exact"] == {}
    assert result["match"].keys() == {"exact_match", "f1", "intervals", "counts"}
    assert result["match"]["counts"]["f1"] == {
        name: {"1": 2, "all": 2} for name in ("memory", "erased")
    }
    low, high = result["match"]["intervals"]["f1"]["memory"]["all"]
    assert low <= result["match"]["f1"]["memory"]["all"] <= high
    assert result["rewards"].keys() == {"bleu", "cosine", "length", "total"}
    assert result["scores"]["erased"].keys() == result["rewards"].keys()
    assert result["scores"]["counts"]["erased"]["total"] == 2


def test_of_mixed_conversations_each_figure_counts_those_that_it_is_of(
    checkpoint: str, tmp_path: Path
) -> None:
    asking = Path(write_rows(tmp_path / "asking.jsonl", {"value": "Rex", "said_in": 0}))
    other = Path(write_rows(tmp_path / "other.jsonl"))
    (tmp_path / "mixed.jsonl").write_text(asking.read_text() + other.read_text())
    result = evaluate_checkpoint(checkpoint, str(tmp_path / "mixed.jsonl"))
    assert result["counts"]["all"] == 2
    assert result["match"]["counts"]["f1"]["memory"]["all"] == 4
    assert result["scores"]["counts"]["memory"]["recall"] == 2
    assert result["scores"]["counts"]["memory"]["total"] == 4


def test_training_conversations_stand_beside_those_that_a_run_held_out(checkpoint: str) -> None:
    result = evaluate_checkpoint(checkpoint)
    facts = sum(
        len(turn.facts)
        for row in evaluation_rows(tiny_corpus().train, TRAINING_ROWS)
        for turn in row.interactions
    )
    assert result["retention"]["counts"]["training"]["all"] == facts
    assert result["match"]["f1"].keys() == {"memory", "erased", "training"}
    assert result["warnings"] == []


def test_a_named_file_is_read_by_the_columns_of_the_run(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", {"value": "Rex", "said_in": 0})
    data = {"kind": "rows", "train": [path], "eval": [path], "columns": {"query": "said"}}
    where = prepared(tiny_run(tmp_path, "sft", data=data)).path()
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    others = [{"id": 7, "said": record.pop("query"), **record} for record in records]
    named = tmp_path / "others.jsonl"
    named.write_text("".join(json.dumps(record) + "\n" for record in others))
    assert evaluate_checkpoint(where, str(named))["counts"]["all"] == 2


def test_a_run_that_ends_before_mrl_is_evaluated(tmp_path: Path) -> None:
    directory, _ = run_here(tiny_run(tmp_path, "sft"))
    assert evaluate_checkpoint(directory.path())["counts"]["all"]
