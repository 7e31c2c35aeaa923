"""Retention: what counts as recalled, at what distance, beside controls that cannot remember."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Episode, Fact, Interaction, Row, Turn
from common.failures import DataFailure, InputError
from learner.evaluate import evaluate_checkpoint, evaluation_tasks, mean_rewards, most_frequent_recall, recall_by_distance, retention
from tests.local_source import lively_model, played, prepared, tiny_corpus, tiny_run


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


def turn(answer: str = "", *facts: tuple[str, int]) -> Turn:
    return Turn([1], [2], [0.0], [2], answer=answer, facts=tuple(Fact(value, said_in) for value, said_in in facts))


def episode(*turns: Turn) -> Episode:
    return Episode("e", "t", 0, (turn(), *turns), 0)


def test_recall_is_counted_by_turns_since_the_value_was_last_said() -> None:
    episodes = [
        episode(turn("your dog is Rex", ("Rex", 0)), turn("it is Rexford", ("Rex", 0))),
        episode(turn("no idea", ("Rome", 0)), turn("okay"), turn("at 12:30 in ROME, with Ida Lee", ("Rome", 2), ("12", 0), ("Ida Lee", 2))),
        episode(*[turn()] * 10, turn("Max", ("Max", 0))),
    ]
    recall, counts = recall_by_distance(episodes)
    assert counts == {"1": 4, "2": 1, "3": 1, "11": 1, "all": 7}
    assert recall == {"1": 3 / 4, "2": 0.0, "3": 0.0, "11": 1.0, "all": 4 / 7}
    assert list(recall) == ["1", "2", "3", "11", "all"]


def test_facts_of_the_opening_turn_are_told_not_asked() -> None:
    told = replace(episode(turn("Rex", ("Rex", 0))), turns=(turn("Rex", ("Rex", 0)), turn("Rex", ("Rex", 0))))
    assert recall_by_distance([told])[1] == {"1": 1, "all": 1}
    assert recall_by_distance([]) == ({}, {})


def test_episode_that_could_not_be_played_is_no_zero() -> None:
    failed = replace(episode(replace(turn(), failure="too long")), status="failed")
    with pytest.raises(DataFailure, match="could not be played: too long"):
        recall_by_distance([episode(turn("Rex", ("Rex", 0))), failed])


def row(*values: str) -> Row:
    return Row("q", "a", tuple(Interaction("q?", value, facts=(Fact(value, i),)) for i, value in enumerate(values)))


def test_most_frequent_answer_comes_from_the_training_data_and_is_judged_on_the_others() -> None:
    train = [row("Rex", "Tom"), row("Tom", "Ida"), row("Ida")]
    held_out = [row("Ida", "Rex", "Tom"), Row("q", "a", (Interaction("q", "a"), Interaction("q?", "Tom", facts=(Fact("Tom", 0),))))]
    # Ida and Tom are asked for twice each; the first in the alphabet is taken.
    assert most_frequent_recall(train, held_out) == {"1": 1 / 3, "2": 0.0, "all": 1 / 4}
    assert most_frequent_recall([row("Tom")], held_out) == {"1": 1 / 3, "2": 1.0, "all": 1 / 2}
    assert most_frequent_recall([], held_out)["all"] == 0.0


def test_means_of_rewards_are_over_the_turns_that_have_them() -> None:
    scored = [replace(turn(), rewards={"bleu": 0.5, "recall": 1.0}, reward=0.6), replace(turn(), rewards={"bleu": 0.1}, reward=0.2), turn()]
    assert mean_rewards([episode(*scored)]) == pytest.approx({"bleu": 0.3, "recall": 1.0, "total": 0.4})


def test_erased_memory_leaves_nothing_of_earlier_turns_in_the_answers(tokenizer: ConversationTokenizer) -> None:
    model = lively_model(tokenizer)
    rows = [row for row in tiny_corpus().train if len(row.interactions) == 3][:5]
    others = [replace(row, query="I have a cat called Luna", answer="that is a nice name") for row in rows]

    def answers(rows: list[Row], erase: bool) -> list[list[list[int]]]:
        return [[list(turn.answer_ids) for turn in e.answered] for e in played(model, tokenizer, evaluation_tasks(rows, 3, erase))]

    assert answers(rows, erase=True) == answers(others, erase=True)
    assert answers(rows, erase=False) != answers(others, erase=False)
    swapped = [replace(row, interactions=(row.interactions[1], row.interactions[0], row.interactions[2])) for row in rows]
    assert [a[2] for a in answers(rows, erase=True)] != [a[1] for a in answers(swapped, erase=True)]


def test_both_controls_begin_with_the_same_memory_and_decode_greedily() -> None:
    rows = tiny_corpus().train[:3]
    memory, erased = evaluation_tasks(rows, 9, erase=False), evaluation_tasks(rows, 9, erase=True)
    assert [task.seed for task in memory] == [task.seed for task in erased]
    assert all(task.greedy and not task.teacher_forcing and task.initial_memory is None for task in memory + erased)
    assert [task.erase_memory for task in memory + erased] == [False] * 3 + [True] * 3
    assert len({task.id for task in memory + erased}) == 6


def test_retention_plays_the_same_rows_with_and_without_memory(tokenizer: ConversationTokenizer) -> None:
    model, rows = lively_model(tokenizer), tiny_corpus().eval
    recall, counts, episodes = retention(lambda tasks: played(model, tokenizer, tasks), rows, 1)
    assert recall.keys() == {"memory", "erased"}
    assert recall["memory"].keys() == recall["erased"].keys() == counts.keys()
    assert len(episodes) == len(rows)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(tiny_run(tmp_path_factory.mktemp("evaluate"), "sft")).path()


def write_rows(path: Path, *facts: dict[str, object]) -> str:
    rows = [
        {"query": query, "answer": "okay", "interactions": [{"query": "what is it called?", "answer": "Rex", "facts": list(facts)}]}
        for query in ("I have a dog called Rex", "my dog is called Rex")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_saved_checkpoint_is_evaluated(checkpoint: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {"value": "Rex", "said_in": 0})
    result = evaluate_checkpoint(checkpoint, data)
    assert result.keys() == {"retention", "counts", "rewards"}
    assert result["retention"].keys() == {"memory", "erased", "most_frequent"}
    assert result["counts"] == {"1": 2, "all": 2}
    assert {"bleu", "cosine", "length", "recall", "total"} == result["rewards"].keys()
    assert json.loads(json.dumps(result)) == result == evaluate_checkpoint(f"{checkpoint}/checkpoints/step_00000000", data)


def test_what_cannot_be_evaluated_is_named(checkpoint: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {"value": "Rex", "said_in": 0})
    with pytest.raises(InputError, match="nowhere: does not exist"):
        evaluate_checkpoint(str(tmp_path / "nowhere"), data)
    with pytest.raises(InputError, match="is not a checkpoint"):
        evaluate_checkpoint(str(tmp_path), data)
    factless = write_rows(tmp_path / "factless.jsonl")
    with pytest.raises(InputError, match=r"factless\.jsonl: asks for no facts"):
        evaluate_checkpoint(checkpoint, factless)
