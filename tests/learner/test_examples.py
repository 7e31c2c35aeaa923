"""Conversations that a run shows as examples of what it learns from."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.data import SynthData
from common.data.datasets.table import load_corpus
from common.episode import Interaction, Row
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from learner.examples import EXAMPLES, read_examples, write_examples


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "one").mkdir()
    return RunDirectory(str(tmp_path), "one")


def test_short_conversations_that_ask_for_facts_come_first(directory: RunDirectory) -> None:
    train = load_corpus(SynthData(kind="synth", train=50, eval=2), 0).train
    talk = Row("hi", "ho", (Interaction("a", "b"),))
    write_examples(directory, [talk, *train])
    shown = read_examples(directory)
    questions = {turn.query for row in train for turn in row.interactions if turn.facts}
    asked = [{query for query, _ in turns} & questions for turns in shown]
    assert all(each - set().union(*asked[:number]) for number, each in enumerate(asked))
    asking = [row for row in train if any(turn.facts for turn in row.interactions)]
    lengths = sorted(sum(len(t.query) + len(t.answer) for t in row.turns) for row in asking)
    assert sum(len(query) + len(answer) for query, answer in shown[0]) == lengths[0]
    assert ("hi", "ho") not in [turns[0] for turns in shown]


def test_a_run_without_examples_has_none_and_damage_names_the_file(
    directory: RunDirectory,
) -> None:
    assert read_examples(directory) == []
    directory.write_text(EXAMPLES, "[[1]]")
    with pytest.raises(InputError, match=EXAMPLES):
        read_examples(directory)
