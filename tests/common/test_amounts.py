"""Warnings where there are few data."""

from __future__ import annotations

from common.data.amounts import FEW, few_data, too_few
from common.data.corpus import corpus_of
from common.episode import Interaction, Row

ROW = Row("a", "b", (Interaction("c", "d"),))


def test_few_conversations_are_told_with_their_number() -> None:
    told = too_few(40, "conversations")
    assert told is not None
    assert told.startswith("few data: 40 conversations. Below 1,000, ")
    assert too_few(FEW, "conversations") is None


def test_only_what_a_run_learns_from_counts() -> None:
    few = corpus_of([ROW] * 40, [ROW], [])
    (told,) = few_data(few, ["train", "texts"])
    assert "40 training conversations" in told
    assert few_data(few, ["texts", "pairs"]) == []
    assert few_data(corpus_of([ROW] * FEW, [ROW], []), ["train"]) == []
