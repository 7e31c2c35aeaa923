"""Under the mixes that are shipped, the right answer pays best, and naming one value pays more than
hedging."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from common.config.loader import load_run
from common.config.rewards import Rewards
from reward_service.degenerate import RIGHT, VOCABULARY, Earnings, earnings, guessing, table

CONFIGS = Path(__file__).parents[2] / "configs"
COPYING_PAYS = {"bleu_and_cosine", "bleu_and_cosine_0_to_10", "bleu_and_cosine_symmetric"}
"""As published: in these, a copy of the saved interaction beats the right answer."""

HEDGING_PAYS = {"mostly_bleu_0_to_10"}
"""As published: without recall, two values beat the likeliest one of many."""


@cache
def shipped() -> dict[str, Rewards]:
    """The mixes of all files under configs/, by the file that holds them, and the one of a run
    without `rewards`. An environment pays for something else than facts, and a file
    without a name is laid over another."""
    found = {"default": Rewards()}
    for file in sorted(CONFIGS.glob("*.yaml")):
        lines = file.read_text().splitlines()
        keys = {line.partition(":")[0] for line in lines}
        if {"name", "rewards"} <= keys and "environment" not in keys:
            rewards = load_run([file]).rewards
            # What a reward model pays is known once it is trained.
            if not any(mix.models for mix in rewards.mixes().values()):
                found[file.stem] = rewards
    for file in sorted((CONFIGS / "rewards").glob("*.yaml")):
        found[file.stem] = load_run([CONFIGS / "demo.yaml", file]).rewards
    return found


def other_embedding() -> np.ndarray:
    """As of a trained model: vectors of unlike length that have a direction in common."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(VOCABULARY, 24)) * rng.lognormal(size=(VOCABULARY, 1)) + 0.5
    return vectors.astype(np.float32)


EMBEDDINGS: dict[str, Callable[[], np.ndarray | None]] = {
    "random": lambda: None,
    "one-sided": other_embedding,
}
HONEST = sorted(shipped().keys() - COPYING_PAYS)


@cache
def earned_under(name: str, embedding: str) -> list[Earnings]:
    return earnings(shipped()[name], EMBEDDINGS[embedding]())


def asking(found: list[Earnings]) -> list[Earnings]:
    return [one for one in found if one.place != "nothing asked"]


def test_all_strategies_and_forms_are_looked_at() -> None:
    assert {"default", "demo", "babi", "mostly_bleu"} <= set(HONEST)
    found = earned_under("demo", "random")
    assert all(len(one.by_answer) == 14 for one in asking(found))
    assert [one.place for one in found] == [
        "single, first answer",
        "cumulative, first answer",
        "nothing asked",
        "cumulative, standard",
        "long_term, topic change",
        "long_term, standard",
        "long_term, long range",
    ]


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("name", HONEST)
def test_a_right_answer_earns_more_than_every_degenerate_one(name: str, embedding: str) -> None:
    for one in earned_under(name, embedding):
        for answer, reward in one.by_answer.items():
            if answer != RIGHT:
                assert (one.by_answer[RIGHT] > reward).all(), f"{one.place}: {answer}"


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("values", [2, 6, 12, 48])
@pytest.mark.parametrize("name", sorted(set(HONEST) - HEDGING_PAYS))
def test_one_value_beats_two_a_list_and_none_at_every_certainty(
    name: str, values: int, embedding: str
) -> None:
    for one in asking(earned_under(name, embedding)):
        for certainty in (tenth for tenth in np.arange(1, 10) / 10 if tenth >= 1 / values):
            expected = guessing(one, float(certainty), values)
            for answer, reward in expected.items():
                if answer != "one value":
                    assert (expected["one value"] > reward).all(), (
                        f"{one.place}, {certainty:.1f}: {answer}"
                    )


@pytest.mark.parametrize("name", sorted(COPYING_PAYS))
def test_copies_beat_right_answers_in_the_mixes_that_say_so(name: str) -> None:
    paid = {one.place: one.by_answer for one in earned_under(name, "random")}
    for place in ("single, first answer", "cumulative, standard", "long_term, long range"):
        assert paid[place]["copy of the saved interaction"].mean() > paid[place][RIGHT].mean(), (
            place
        )


def test_a_mix_that_pays_for_hedging_shows_it() -> None:
    """The conditions are no tautology. Without recall the articles' mix does not meet them."""
    (name,) = HEDGING_PAYS
    expected = [guessing(one, 0.1, 12) for one in asking(earned_under(name, "random"))]
    assert any((guess["one value"] < guess["two values"]).any() for guess in expected)


def test_the_document_shows_the_table_of_every_mix() -> None:
    text = (CONFIGS.parent / "docs" / "rewards.md").read_text()
    for name in ("default", "demo", "babi", "mostly_bleu", "bleu_and_cosine"):
        assert table(shipped()[name]) in text, (
            f"print it again: python -m reward_service.degenerate ({name})"
        )
