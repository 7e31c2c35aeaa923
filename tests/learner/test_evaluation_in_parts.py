"""Long conversations in parts: the same answers and figures as played whole, what is held of them,
and what a turn costs."""

from __future__ import annotations

import tracemalloc
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.generation import LongContext
from common.config.rollout import Sampling
from common.data.conversations import save_rows
from common.data.datasets.long_context import long_contexts
from common.data.leftovers import Leftovers
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Episode, Interaction, Row, Task
from common.failures import DataFailure, InputError
from learner.evaluation.evaluate import (
    carried_figures,
    evaluate_checkpoint,
    evaluation_tasks,
    figures_of,
    played_figures,
)
from learner.evaluation.figures import Figure, in_powers
from learner.evaluation.fitting import require_fitting
from learner.evaluation.parts import ENDS, WHOLE, Part, played_parts
from rollout.policies.reactive.engine import ReactiveEngine
from tests.local_source import lively_model, prepared, tiny_run

SAMPLING = Sampling(max_new_tokens=3)


def rows_of(turns: int, count: int = 3) -> list[Row]:
    (rows,) = long_contexts(
        LongContext(turns=(turns,), eval=count, subjects=3), 1, Leftovers()
    ).values()
    return rows


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    told = [turn for turns in (160, 30) for row in rows_of(turns) for turn in row.turns]
    return train_tokenizer([text for turn in told for text in (turn.query, turn.answer)], 600)


@pytest.fixture(scope="module")
def engine(tokenizer: ConversationTokenizer) -> ReactiveEngine:
    return ReactiveEngine(lively_model(tokenizer), tokenizer, 4, SAMPLING)


def same(one: Figure, other: Figure) -> bool:
    return one.share() == pytest.approx(other.share()) and one.totals() == other.totals()


@pytest.mark.parametrize("erase", [False, True])
def test_parts_have_the_answers_of_the_conversation_played_whole(
    engine: ReactiveEngine, erase: bool
) -> None:
    rows = [*rows_of(160, 2), *rows_of(30, 2), *rows_of(128, 1)]
    tasks = evaluation_tasks(rows, 3, erase)
    expected = engine.run(tasks)
    firsts: dict[int, list[int]] = defaultdict(list)
    answers: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for part in played_parts(engine.run, tasks):
        firsts[part.conversation].append(part.first)
        answers[part.conversation] += [(n, list(turn.answer_ids)) for n, turn in part.answered]
        assert len(part.episode.answered) <= WHOLE
    assert firsts == {0: [1, 17, 33, 65, 129], 1: [1, 17, 33, 65, 129], 2: [1], 3: [1], 4: [1]}
    for number, episode in enumerate(expected):
        turns = [(n, list(turn.answer_ids)) for n, turn in enumerate(episode.answered, 1)]
        assert answers[number] == turns
    assert len({tuple(ids) for _, ids in answers[0]}) > 5, "answers differ, so their order matters"

    found, whole = played_figures(engine.run, tasks).figures, figures_of(expected)
    assert found.keys() == whole.keys()
    assert all(same(found[name], whole[name]) for name in whole)
    assert found["recall"].totals()["all"] > 10


def test_memory_goes_on_from_part_to_part_and_to_the_next_conversation(
    engine: ReactiveEngine,
) -> None:
    rows = rows_of(140, 2)
    ends: list[Part] = []
    tasks = evaluation_tasks(rows, 3, erase=False)
    for part in played_parts(engine.run, tasks):
        if part.first > WHOLE:
            ends.append(part)
    hashes = [episode.memory_hash for episode in engine.run(tasks)]
    assert [part.episode.memory_hash for part in ends] == hashes
    begun: list[Task] = []

    def run(tasks: list[Task]) -> list[Episode]:
        begun.extend(task for task in tasks if task.first_turn == 1)
        return engine.run(tasks)

    carried_figures(run, rows, 3, ())
    assert [task.initial_memory is None for task in begun] == [True, True, False, False]
    assert begun[2].initial_memory != begun[3].initial_memory


def test_a_part_that_cannot_be_played_is_named(engine: ReactiveEngine) -> None:
    (row,) = rows_of(140, 1)
    long = [*row.interactions[:135], Interaction("word " * 300, "okay"), *row.interactions[136:]]
    task = evaluation_tasks([replace(row, interactions=tuple(long))], 0, erase=False)
    with pytest.raises(DataFailure, match=r"eval-memory-0-129@0 could not be played: turn 136"):
        played_figures(engine.run, task)


def test_what_is_held_of_a_conversation_does_not_grow_with_its_turns(
    tokenizer: ConversationTokenizer,
) -> None:
    engine = ReactiveEngine(lively_model(tokenizer), tokenizer, 1, Sampling(max_new_tokens=1))
    # What the first use of anything takes once is not to be measured.
    played_figures(engine.run, evaluation_tasks(rows_of(140, 1), 0, erase=False))
    peaks = {}
    for turns in (256, 2048):
        tasks = evaluation_tasks(rows_of(turns, 1), 0, erase=False)
        tracemalloc.start()
        found = played_figures(engine.run, tasks)
        peaks[turns] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        keys = found.figures["f1"].totals()
        assert len(keys) == ENDS[0] + (turns // ENDS[0]).bit_length()
    # A turn that is held takes kilobytes; what is left of one is places in tuples of references.
    assert peaks[2048] - peaks[256] < (2048 - 256) * 128, peaks


def test_a_turn_of_a_long_conversation_has_its_cost_by_number(tmp_path: Path) -> None:
    rows = rows_of(140, 2)
    texts = {"vocab_size": 600}
    save_rows(rows, tmp_path / "rows.jsonl")
    run = tiny_run(
        tmp_path, "sft", tokenizer=texts, model={"max_tokens": 96}, rollout={"workers": 1}
    )
    where = prepared(run).path()
    found = evaluate_checkpoint(where, str(tmp_path / "rows.jsonl"))
    seconds = found["cost"]["seconds"]
    assert list(seconds) == ["1-16", "17-32", "33-64", "65-128", "129-256"]
    assert all(value > 0 for value in seconds.values())
    assert found["cost"]["turns"] == {"1-16": 32, "17-32": 32, "33-64": 64, "65-128": 128,
                                      "129-256": 24}  # fmt: skip
    save_rows(rows_of(20, 2), tmp_path / "short.jsonl")
    assert "cost" not in evaluate_checkpoint(where, str(tmp_path / "short.jsonl"))


def test_a_turn_that_does_not_fit_the_model_is_named_before_any_is_played(
    tokenizer: ConversationTokenizer,
) -> None:
    rows = rows_of(30, 3)
    longest = max(len(tokenizer.prompt(turn.query)) for row in rows for turn in row.interactions)
    opening = max(len(tokenizer.interaction(row.opening)) for row in rows)
    require_fitting(rows, tokenizer, max(longest + 1, opening), "rows.jsonl")
    long = Interaction("so it goes on and on and on and on " * 9, "okay")
    turns = rows[1].interactions
    wrong = [rows[0], replace(rows[1], interactions=(*turns[:4], long, long, *turns[6:])), rows[2]]
    with pytest.raises(InputError) as refused:
        require_fitting(wrong, tokenizer, max(longest + 1, opening), "rows.jsonl")
    assert refused.value.where == "rows.jsonl, conversation 2, turn 5"
    assert "'so it goes on and on' … has" in refused.value.what
    assert "2 turns of 1 conversations do not fit" in refused.value.what
    with pytest.raises(InputError, match="conversation 1, turn 0"):
        require_fitting([replace(rows[0], answer="it is so " * 40)], tokenizer, 32, "rows.jsonl")
    # A prompt that leaves room for one token of an answer fits, and one more does not.
    asked = replace(rows[0], query="a", answer="b", interactions=(long,))
    room = len(tokenizer.prompt(long.query)) + 1
    require_fitting([asked], tokenizer, room, "rows.jsonl")
    with pytest.raises(InputError, match="turn 1"):
        require_fitting([asked], tokenizer, room - 1, "rows.jsonl")


def test_keys_beyond_sixteen_are_powers_of_two() -> None:
    assert [in_powers(n) for n in (1, 16, 17, 32, 33, 64, 65, 2048, 2049)] == [
        "1", "16", "17-32", "17-32", "33-64", "33-64", "65-128", "1025-2048", "2049-4096",
    ]  # fmt: skip
