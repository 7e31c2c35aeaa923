"""Generated conversations: truthful facts, even distances, disjoint splits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.data import SynthData
from common.data.datasets.synth import PATTERNS, UNSEEN, generate
from common.data.datasets.table import load_corpus
from common.data.datasets.world import KINDS, SMALL_TALK, kind_values
from common.data.splits import conversation_hash
from common.episode import Row
from common.failures import InputError
from common.text.values import contains_value, words

EVERYTHING = SynthData(
    train=300,
    eval=40,
    steps=(1, 4, 8),
    strategies=("single", "cumulative", "long_term"),
    change_probability=0.4,
)
KIND_OF = {value.lower(): kind for kind in range(len(KINDS)) for value in kind_values(kind, 48)}
CORPUS = load_corpus(EVERYTHING, seed=7)


def assert_truthful(row: Row) -> None:
    """Replay the conversation: every expected value is the newest of its kind, and said_in is where
    it was last said."""
    newest: dict[int, str] = {}
    said_in: dict[int, int] = {}
    told: dict[int, list[str]] = {}
    for turn, interaction in enumerate(row.turns):
        for fact in interaction.facts:
            kind = KIND_OF[fact.value.lower()]
            assert (newest[kind], said_in[kind]) == (fact.value.lower(), fact.said_in)
            # Every value told before, oldest first, but for the newest, which may have come back.
            assert [value.lower() for value in fact.outdated] == [
                value for value in told[kind][:-1] if value != newest[kind]
            ]
            assert contains_value(interaction.answer, fact.value)
            assert not contains_value(interaction.query, fact.value)
        for word in words(f"{interaction.query} | {interaction.answer}"):
            if word in KIND_OF:
                assert not ("now" in words(interaction.query) and newest[KIND_OF[word]] == word), (
                    "a change changes nothing"
                )
                newest[KIND_OF[word]], said_in[KIND_OF[word]] = word, turn
                if interaction.role == "remember":
                    told.setdefault(KIND_OF[word], []).append(word)
        assert (interaction.role == "recall") == bool(interaction.facts)
        assert len(words(interaction.query)) <= 9
        assert len(words(interaction.answer)) <= 6 * max(1, len(interaction.facts))


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
def test_any_settings_give_conversations_that_end_with_a_question(
    config: SynthData, seed: int
) -> None:
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
            assert KIND_OF[last.value.lower()] == next(
                KIND_OF[w] for w in words(row.query) if w in KIND_OF
            )
            assert bool(last.said_in) == bool(last.outdated)
            assert "recall" not in middle
    assert Counter(row.strategy for row in CORPUS.train) == {
        "single": 100,
        "cumulative": 100,
        "long_term": 100,
    }


@pytest.mark.parametrize("strategy", ["cumulative", "long_term"])
def test_questions_ask_for_changed_facts_as_often_as_for_others(strategy: str) -> None:
    config = SynthData.model_validate(
        {"train": 1000, "eval": 50, "steps": [4, 5], "strategies": [strategy]}
    )
    facts = [
        fact
        for row in generate(config, 3)["train"]
        for turn in row.interactions
        for fact in turn.facts
    ]
    assert 0.42 < sum(bool(fact.outdated) for fact in facts) / len(facts) < 0.55
    assert any(len(fact.outdated) > 1 for fact in facts) == (strategy == "cumulative")
    never = generate(
        config.model_copy(update={"changed_questions": 0.0, "change_probability": 0.0}), 3
    )["train"]
    assert not any(
        fact.outdated for row in never for turn in row.interactions for fact in turn.facts
    )


def test_facts_that_changed_twice_are_asked_for_often_enough_to_learn_from() -> None:
    settings = SynthData(train=1000, eval=10, steps=(2, 3, 4, 5, 6), change_probability=0.5)
    changed = [
        len(fact.outdated)
        for row in generate(settings, seed=3)["train"]
        for said in row.turns
        for fact in said.facts
        if fact.outdated
    ]
    assert sum(changes > 1 for changes in changed) > 0.12 * len(changed)


def test_each_strategy_of_a_mixture_asks_for_changed_facts_by_itself() -> None:
    config = SynthData(
        train=1500, eval=10, steps=(3, 5), strategies=("single", "cumulative", "long_term")
    )
    rows = generate(config, 3)["train"]
    for strategy in ("cumulative", "long_term"):
        facts = [
            fact
            for row in rows
            if row.strategy == strategy
            for turn in row.interactions
            for fact in turn.facts
        ]
        assert 0.35 < sum(bool(fact.outdated) for fact in facts) / len(facts) < 0.65


def test_patterns_need_another_thing_to_tell_of() -> None:
    with pytest.raises(InputError, match=r"data\.subjects: is 1"):
        generate(SynthData(train=1, eval=1, subjects=1, patterns=3), 0)


def events(row: Row) -> list[tuple[str, int | None]]:
    """(what, kind) of each turn: tell, change, ask or chat."""
    found: list[tuple[str, int | None]] = []
    for turn in row.turns:
        kinds = [KIND_OF[word] for word in words(f"{turn.query} {turn.answer}") if word in KIND_OF]
        kind = kinds[0] if turn.role != "distract" else None
        what = {"recall": "ask", "distract": "chat"}.get(turn.role)
        seen = any(event == ("tell", kind) for event in found)
        found.append((what or ("change" if seen else "tell"), kind))
    return found


def contains_unseen(row: Row) -> bool:
    told = events(row)
    for i, (what, _) in enumerate(told):
        follows = [each for each, _ in told[i + 1 : i + 4]]
        if what == "change" and (follows[:1] == ["tell"] or follows == ["chat"] * 3):
            return True
    return False


def test_patterns_are_splits_of_their_own_of_which_two_occur_nowhere_else() -> None:
    config = SynthData(
        train=2000,
        eval=300,
        steps=(2, 3, 4, 5),
        distractors=0.5,
        change_probability=0.3,
        patterns=150,
    )
    splits = generate(config, 11)
    assert splits.keys() == {"train", "eval", "test", *PATTERNS}
    assert load_corpus(config, 11).patterns.keys() == PATTERNS.keys()
    train = {conversation_hash(row) for row in splits["train"]}
    for name, pattern in PATTERNS.items():
        rows = splits[name]
        assert len({conversation_hash(row) for row in rows}) == 150
        assert not train & {conversation_hash(row) for row in rows}
        for row in rows:
            assert_truthful(row)
            assert len(row.turns) <= 6
            target = row.interactions[-1].facts[0]
            tail = events(row)[-len(pattern) :]
            kind = KIND_OF[target.value.lower()]
            expected = [what.removesuffix(" another") for what in pattern]
            assert [what for what, _ in tail] == expected
            others = {
                of for (_, of), what in zip(tail, pattern, strict=True) if what == "tell another"
            }
            assert kind not in others
            assert {of for _, of in tail} - others - {None} == {kind}
            assert len(target.outdated) == pattern.count("change")
        assert (
            all(map(contains_unseen, rows)) == any(map(contains_unseen, rows)) == (name in UNSEEN)
        )
    assert not any(
        contains_unseen(row) for split in ("train", "eval", "test") for row in splits[split]
    )


def test_distances_of_cumulative_conversations_are_nearly_uniform() -> None:
    rows = generate(SynthData(train=1000, eval=10), seed=3)["train"]
    counts = Counter(
        turn - fact.said_in
        for row in rows
        for turn, said in enumerate(row.turns)
        for fact in said.facts
    )
    assert set(counts) == {1, 2, 3, 4, 5}
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_no_two_splits_share_a_conversation() -> None:
    # A tiny world, where the same conversation comes up again and again.
    corpus = load_corpus(SynthData(train=400, eval=40, steps=(2,), subjects=2, values=4), seed=0)
    train, tune, test = (
        {conversation_hash(row) for row in rows}
        for rows in (corpus.train, corpus.eval, corpus.test)
    )
    assert train
    assert tune
    assert test
    assert not (train & tune)
    assert not (train & test)
    assert not (tune & test)


def test_a_conversation_stays_in_its_split_whatever_the_sizes_of_the_splits() -> None:
    many, few = (
        generate(SynthData(train=train, eval=held, steps=(1, 2)), 5)
        for train, held in ((2000, 20), (200, 200))
    )
    known = {conversation_hash(row) for row in many["train"]}
    for split in ("eval", "test"):
        assert not known & {conversation_hash(row) for row in few[split]}


def test_held_out_conversations_are_different_ones_and_short_ones_run_out_first() -> None:
    # 6 kinds told in 2 ways with 12 values and asked in 2 ways: 288 conversations of one follow-up,
    # of which a tenth is held out.
    held = generate(SynthData(train=10, eval=200, steps=(1, 3)), 0)["eval"]
    assert len({conversation_hash(row) for row in held}) == 200
    lengths = Counter(len(row.interactions) for row in held)
    assert 15 < lengths[1] < 45
    assert lengths[1] + lengths[3] == 200


def test_a_world_too_small_for_its_splits_is_bad_input() -> None:
    # One dog with two names, told in two ways and asked in two: eight conversations are not ten.
    config = SynthData(train=1, eval=5, strategies=("single",), subjects=1, values=2)
    with pytest.raises(InputError, match="allow more subjects"):
        generate(config, 0)


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another() -> None:
    assert load_corpus(EVERYTHING, seed=7) == CORPUS
    assert load_corpus(EVERYTHING, seed=8).train[0] != CORPUS.train[0]


def test_no_value_belongs_to_two_kinds_or_stands_in_a_template() -> None:
    every = [value.lower() for kind in range(len(KINDS)) for value in kind_values(kind, 48)]
    assert len(set(every)) == len(every) == 24 * 48
    templates = [
        text for kind in KINDS for text in (*kind.tell, *kind.change, *kind.ask, kind.answer)
    ]
    templates += [text for pair in SMALL_TALK for text in pair]
    assert not set(every) & {word for text in templates for word in words(text.format(v=""))}


def test_subjects_and_values_bound_the_world() -> None:
    config = SynthData(train=300, eval=10, subjects=2, values=3)
    values = {
        fact.value
        for row in generate(config, 0)["train"]
        for turn in row.turns
        for fact in turn.facts
    }
    assert values == {*kind_values(0, 3), *kind_values(1, 3)}


def test_texts_and_pairs_are_the_interactions_of_training() -> None:
    assert CORPUS.pairs == [turn for row in CORPUS.train for turn in row.turns]
    assert CORPUS.texts[:2] == [CORPUS.train[0].query, CORPUS.train[0].answer]


def test_the_last_question_of_cumulative_talk_may_ask_for_everything_that_was_told() -> None:
    config = EVERYTHING.model_copy(update={"final_question": "all"})
    long = [row for row in generate(config, 3)["train"] if len(row.interactions) > 1]
    asked_for_several = 0
    for row in long:
        assert_truthful(row)
        last = row.interactions[-1]
        said = words(" ".join(turn.query for turn in row.turns if turn.role == "remember"))
        told = {KIND_OF[word] for word in said if word in KIND_OF}
        asked = [KIND_OF[fact.value.lower()] for fact in last.facts]
        if row.strategy == "cumulative":
            assert sorted(asked) == sorted(told)
            asked_for_several += len(asked) > 1
        else:
            assert len(asked) == 1
    assert asked_for_several > 20
