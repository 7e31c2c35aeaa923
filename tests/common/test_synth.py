"""Generated conversations: truthful facts, even distances, disjoint splits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.schema import SynthData
from common.data.sources import load_corpus
from common.data.splits import conversation_hash
from common.data.synth import KINDS, SMALL_TALK, generate, kind_values
from common.episode import Row
from common.failures import InputError
from common.text import contains_value, words

EVERYTHING = SynthData(train=300, eval=40, steps=(1, 4, 8), strategies=("single", "cumulative", "long_term"), change_probability=0.4)
KIND_OF = {value.lower(): kind for kind in range(len(KINDS)) for value in kind_values(kind, 48)}
CORPUS = load_corpus(EVERYTHING, seed=7)


def assert_truthful(row: Row) -> None:
    """Replay the conversation: every expected value is the newest of its kind, and said_in is where it was last said."""
    newest: dict[int, str] = {}
    said_in: dict[int, int] = {}
    for turn, interaction in enumerate(row.turns):
        for fact in interaction.facts:
            kind = KIND_OF[fact.value.lower()]
            assert (newest[kind], said_in[kind]) == (fact.value.lower(), fact.said_in)
            assert contains_value(interaction.answer, fact.value)
            assert not contains_value(interaction.query, fact.value)
        for word in words(f"{interaction.query} | {interaction.answer}"):
            if word in KIND_OF:
                assert not ("now" in words(interaction.query) and newest[KIND_OF[word]] == word), "a change changes nothing"
                newest[KIND_OF[word]], said_in[KIND_OF[word]] = word, turn
        assert (interaction.role == "recall") == bool(interaction.facts)
        assert len(words(interaction.query)) <= 9
        assert len(words(interaction.answer)) <= 6


def test_expected_values_are_the_newest_and_said_in_is_where_they_were_last_said() -> None:
    for row in CORPUS.train:
        assert_truthful(row)
    changed = [row for row in CORPUS.train if any("now" in words(turn.query) for turn in row.turns)]
    assert len(changed) > 50


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        SynthData,
        train=st.just(5),
        eval=st.just(1),
        steps=st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
        strategies=st.just(("cumulative", "long_term")),
        subjects=st.integers(1, 24),
        values=st.integers(6, 48),
        change_probability=st.floats(0, 1),
        distractors=st.floats(0, 1),
    ),
    st.integers(0, 2**31),
)
def test_any_settings_give_conversations_that_end_with_a_question(config: SynthData, seed: int) -> None:
    for i, row in enumerate(generate(config, seed)["train"]):
        assert len(row.interactions) == config.steps[i // 2 % len(config.steps)]
        assert row.interactions[-1].role == "recall"
        assert_truthful(row)


def test_each_strategy_asks_what_its_name_says() -> None:
    for row in CORPUS.train:
        last = row.interactions[-1].facts[0]
        middle = [turn.role for turn in row.interactions[:-1]]
        if row.strategy == "single":
            assert len(row.interactions) == 1
            assert last.said_in == 0
        if row.strategy == "long_term":
            assert last.said_in == 0
            assert "recall" not in middle
    assert Counter(row.strategy for row in CORPUS.train) == {"single": 100, "cumulative": 100, "long_term": 100}


def test_distances_of_cumulative_conversations_are_nearly_uniform() -> None:
    rows = generate(SynthData(train=1000, eval=10), seed=3)["train"]
    counts = Counter(turn - fact.said_in for row in rows for turn, said in enumerate(row.turns) for fact in said.facts)
    assert set(counts) == {1, 2, 3, 4, 5}
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_no_two_splits_share_a_conversation() -> None:
    # A tiny world, where the same conversation comes up again and again.
    corpus = load_corpus(SynthData(train=400, eval=40, steps=(2,), subjects=2, values=4), seed=0)
    train, tune, test = ({conversation_hash(row) for row in rows} for rows in (corpus.train, corpus.eval, corpus.test))
    assert train
    assert tune
    assert test
    assert not (train & tune)
    assert not (train & test)
    assert not (tune & test)


def test_a_world_too_small_for_its_splits_is_bad_input() -> None:
    # One dog with two names, told in two ways and asked in two: eight conversations cannot always reach three splits.
    config = SynthData(train=1000, eval=1, strategies=("single",), subjects=1, values=2)
    with pytest.raises(InputError, match="allow more subjects"):
        generate(config, 0)


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another() -> None:
    assert load_corpus(EVERYTHING, seed=7) == CORPUS
    assert load_corpus(EVERYTHING, seed=8).train[0] != CORPUS.train[0]


def test_no_value_belongs_to_two_kinds_or_stands_in_a_template() -> None:
    every = [value.lower() for kind in range(len(KINDS)) for value in kind_values(kind, 48)]
    assert len(set(every)) == len(every) == 24 * 48
    templates = [text for kind in KINDS for text in (*kind.tell, *kind.change, *kind.ask, kind.answer)]
    templates += [text for pair in SMALL_TALK for text in pair]
    assert not set(every) & {word for text in templates for word in words(text.format(v=""))}


def test_subjects_and_values_bound_the_world() -> None:
    config = SynthData(train=300, eval=10, subjects=2, values=3)
    values = {fact.value for row in generate(config, 0)["train"] for turn in row.turns for fact in turn.facts}
    assert values == {*kind_values(0, 3), *kind_values(1, 3)}


def test_texts_and_pairs_are_the_interactions_of_training() -> None:
    assert CORPUS.pairs == [turn for row in CORPUS.train for turn in row.turns]
    assert CORPUS.texts[:2] == [CORPUS.train[0].query, CORPUS.train[0].answer]
