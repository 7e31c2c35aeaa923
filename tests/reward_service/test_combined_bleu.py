"""`Bleu.combined`: one score with the reference answer and the saved interaction as references."""

import random

import numpy as np
import pytest
from pydantic import ValidationError

from common.config.components import Bleu
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Strategy, Turn
from reward_service.components.bleu import bleu
from reward_service.compose import score_episodes

BOS, EOS, Q, A = 2, 3, 5, 6


def bleu_only(**settings: object) -> Rewards:
    mix = RewardMix(bleu=Bleu(**settings), cosine=None, length=None, recall=None)  # type: ignore[arg-type]
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def conversation(
    strategy: Strategy, seed: int, turns: int = 6
) -> tuple[Episode, list[list[int]], list[list[int]], list[list[int]]]:
    """The episode, and of each of its turns the query, answer and reference without template."""
    rng = random.Random(seed)

    def tokens() -> list[int]:
        return [rng.randrange(8, 14) for _ in range(rng.choice([0, 1, 4, 12, 40]))]

    queries, answers, references = [[tokens() for _ in range(turns)] for _ in range(3)]
    made = tuple(
        Turn([BOS, Q, *query, A], [*answer, EOS], [], [*reference, EOS])
        for query, answer, reference in zip(queries, answers, references, strict=True)
    )
    return Episode("e", "t", 0, made, 0, strategy=strategy), queries, answers, references


def scores(episode: Episode, rewards: Rewards) -> list[float]:
    (scored,) = score_episodes([episode], rewards, np.eye(16, dtype=np.float32), range(8))
    return [turn.rewards["bleu"] for turn in scored.answered]


@pytest.mark.parametrize("smoothing", ["method1", "method4", "exp"])
def test_combined_is_bleu_with_two_references(smoothing: str) -> None:
    rewards = bleu_only(order=4, smoothing=smoothing, reference=0.4, saved=0.6, combined=True)
    for seed in range(20):
        episode, queries, answers, references = conversation("cumulative", seed)
        both = [[references[i], queries[i - 1] + answers[i - 1]] for i in range(1, len(answers))]
        expected = bleu(
            answers[1:], both, order=4, smoothing=smoothing, effective_order=smoothing == "exp"
        )  # type: ignore[arg-type]
        assert scores(episode, rewards) == pytest.approx(expected.tolist(), abs=1e-12)


def test_weights_do_not_enter_a_combined_score() -> None:
    episode, *_ = conversation("single", seed=3)
    assert scores(episode, bleu_only(reference=0.9, saved=0.1, combined=True)) == scores(
        episode, bleu_only(saved=7, combined=True)
    )


def test_an_ngram_of_either_text_counts_and_is_clipped_at_its_larger_count() -> None:
    # Reference 10 10, saved 11 11 (a query of one token and an answer of one). Of 10 10 10 11: two
    # and one match, together 3 of 4.
    turns = (
        Turn([BOS, Q, 11, A], [11, EOS], [], [11, EOS]),
        Turn([BOS, Q, 9, A], [10, 10, 10, 11, EOS], [], [10, 10, EOS]),
    )
    episode = Episode("e", "t", 0, turns, 0)
    assert scores(episode, bleu_only(order=1, saved=1, combined=True)) == pytest.approx([3 / 4])
    assert scores(episode, bleu_only(order=1, saved=1)) == pytest.approx([(2 / 4 + 1 / 4) / 2])


def test_where_the_topic_changes_the_two_texts_stay_apart() -> None:
    combined = bleu_only(order=2, reference=0.3, saved=0.7, combined=True)
    apart = bleu_only(order=2, reference=0.3, saved=0.7)
    for seed in range(10):
        episode, queries, answers, references = conversation("long_term", seed)
        change, *later = scores(episode, combined)
        to_reference, to_saved = bleu(
            answers[1:2] * 2, [[references[1]], [queries[0] + answers[0]]], order=2
        )
        assert change == pytest.approx(0.3 * to_reference + 0.7 * (1 - to_saved))
        assert change == scores(episode, apart)[0]
        saved = [queries[i - 1] + answers[i - 1] for i in range(2, len(answers) - 1)] + [
            queries[0] + answers[0]
        ]
        both = [[reference, own] for reference, own in zip(references[2:], saved, strict=True)]
        assert later == pytest.approx(bleu(answers[2:], both, order=2).tolist(), abs=1e-12)


def test_an_answer_that_repeats_the_topic_it_should_leave_earns_little_by_a_combined_score() -> (
    None
):
    opening = Turn([BOS, Q, 10, A], [11, EOS], [], [11, EOS])
    repeats = Turn([BOS, Q, 12, A], [10, 11, EOS], [], [13, 14, EOS])
    moves_on = Turn([BOS, Q, 12, A], [13, 14, EOS], [], [13, 14, EOS])
    end = Turn([BOS, Q, 12, A], [13, EOS], [], [13, EOS])
    rewards = bleu_only(order=1, reference=0.5, saved=0.5, combined=True, smoothing="method0")
    first = [
        scores(Episode("e", "t", 0, (opening, turn, end), 0, strategy="long_term"), rewards)[0]
        for turn in (repeats, moves_on)
    ]
    assert first == [0.0, 1.0]


def test_combined_needs_both_texts() -> None:
    for reference, saved in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValidationError, match="one score with both as references"):
            Bleu(reference=reference, saved=saved, combined=True)
