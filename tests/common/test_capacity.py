"""Conversations that ask how much memory holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.generation import Capacity
from common.data.conversations import save_rows
from common.data.datasets.capacity import OWNERS, THINGS, capacity_rows
from common.data.datasets.world import made_up
from common.data.validate import validate_rows
from common.failures import InputError


@pytest.mark.parametrize("facts", [4, 32])
def test_every_key_is_told_some_are_overwritten_and_each_is_asked_for_once(
    tmp_path: Path, facts: int
) -> None:
    rows = capacity_rows(Capacity(facts=(facts,), overwritten=0.25, eval=8, train=2), 3)
    assert {name: len(held) for name, held in rows.items()} == {
        f"train_{facts}": 2,
        f"eval_{facts}": 8,
    }
    for row in rows[f"eval_{facts}"]:
        roles = [turn.role for turn in row.turns]
        writes = facts + facts // 4
        assert roles == ["remember"] * writes + ["recall"] * facts
        asked = [fact for turn in row.turns for fact in turn.facts]
        assert sum(bool(fact.outdated) for fact in asked) == facts // 4
        assert len({turn.query for turn in row.turns[writes:]}) == facts
        told = [turn.query.rpartition(" ")[2] for turn in row.turns[:writes]]
        assert len(set(told)) == writes
        for fact in asked:
            assert told[fact.said_in] == fact.value
            said = row.turns[fact.said_in].query
            assert (" is now called " in said) == bool(fact.outdated)
            assert [told.index(old) < fact.said_in for old in fact.outdated] in ([], [True])
    save_rows(rows[f"eval_{facts}"], tmp_path / "rows.jsonl")
    assert validate_rows(tmp_path / "rows.jsonl").warnings == []


def test_questions_come_in_an_order_of_their_own() -> None:
    (rows,) = capacity_rows(Capacity(facts=(64,), overwritten=0, eval=1), 0).values()
    order = [fact.said_in for turn in rows[0].turns for fact in turn.facts]
    assert sorted(order) == list(range(64))
    assert order != sorted(order)


def test_the_same_seed_gives_the_same_conversations() -> None:
    settings = Capacity(facts=(8,), eval=3)
    assert capacity_rows(settings, 1) == capacity_rows(settings, 1)
    assert capacity_rows(settings, 1) != capacity_rows(settings, 2)


def test_too_few_values_for_the_facts_are_refused() -> None:
    with pytest.raises(InputError, match="16 facts of which 8 change take 24 different values"):
        capacity_rows(Capacity(facts=(4, 16), overwritten=0.5, values=23), 0)
    capacity_rows(Capacity(facts=(4, 16), overwritten=0.5, values=24, eval=1), 0)
    with pytest.raises(InputError, match="there are only"):
        capacity_rows(Capacity(facts=(1,), overwritten=0, values=2, eval=500), 0)


def test_no_value_is_a_word_of_a_key() -> None:
    values = {made_up(number).lower() for number in range(4096)}
    assert len(values) == 4096
    assert values.isdisjoint(word.lower() for word in (*OWNERS, *THINGS))
