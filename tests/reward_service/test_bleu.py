"""BLEU against NLTK and sacrebleu, on thousands of random cases of all the awkward kinds."""

import logging
import random
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from common.config.rewards import Smoothing
from reward_service.bleu import bleu, bleu_of_pairs
from reward_service.tokens import Ragged

LENGTHS = (0, 1, 2, 3, 4, 5, 8, 20, 63, 64, 65, 130)


def random_cases(count: int, seed: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Candidates with one to three references; small vocabularies, so that n-grams repeat; lengths around the 64 bits of a word."""
    rng = random.Random(seed)
    candidates, references = [], []
    for _ in range(count):
        vocabulary = rng.choice([2, 4, 8, 50])

        def draw(vocabulary: int = vocabulary) -> list[int]:
            return [rng.randrange(vocabulary) for _ in range(rng.choice(LENGTHS))]

        candidate, own = draw(), [draw() for _ in range(rng.choice([1, 1, 2, 3]))]
        if candidate and rng.random() < 0.5:
            start = rng.randrange(len(candidate))
            place = rng.randrange(len(own[0]) + 1)
            own[0][place:place] = candidate[start : start + rng.randrange(1, 12)]
        candidates.append(candidate)
        references.append(own)
    return candidates, references


def nltk_score(references: Sequence[Sequence[int]], candidate: Sequence[int], weights: Sequence[float], method: str) -> float:
    """nan where NLTK refuses (method6 without a trigram match)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(sentence_bleu(references, candidate, tuple(weights), getattr(SmoothingFunction(), method)))
        except AssertionError:
            return float("nan")


WEIGHTS = [(1.0,), (0.5, 0.5), (0.3, 0.3, 0.4), (0.25, 0.25, 0.25, 0.25), (0.2, 0.2, 0.3, 0.3)]
METHODS = [(f"method{i}", weights) for i in range(8) for weights in WEIGHTS if i != 6 or len(weights) >= 3]
"""NLTK defines method6 from order 3 on."""


@pytest.mark.parametrize(("method", "weights"), METHODS)
def test_every_smoothing_of_nltk_gives_nltks_score(method: Smoothing, weights: tuple[float, ...]) -> None:
    candidates, references = random_cases(150, seed=len(weights))
    ours = bleu(candidates, references, order=len(weights), weights=weights, smoothing=method)
    theirs = [nltk_score(own, candidate, weights, method) for candidate, own in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert 0 < np.count_nonzero(ours > 0) < len(ours)


@pytest.mark.parametrize("effective_order", [False, True])
@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("method", ["none", "floor", "add-k", "exp"])
def test_every_smoothing_of_sacrebleu_gives_sacrebleus_score(method: Smoothing, order: int, effective_order: bool) -> None:
    candidates, references = random_cases(150, seed=order)
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    metric = sacrebleu.BLEU(tokenize="none", smooth_method=method, effective_order=effective_order, max_ngram_order=order)

    def text(tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    ours = bleu(candidates, references, order=order, smoothing=method, effective_order=effective_order)
    theirs = [metric.sentence_score(text(c), [text(r) for r in own]).score / 100 for c, own in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_a_long_document_beside_short_ones_is_matched_exactly() -> None:
    rng = random.Random(5)
    candidates = [[rng.randrange(6) for _ in range(n)] for n in (3, 700, 1, 64)]
    references = [[[rng.randrange(6) for _ in range(n)]] for n in (900, 500, 128, 2)]
    theirs = [nltk_score(own, candidate, [0.25] * 4, "method4") for candidate, own in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(bleu(candidates, references), theirs, rtol=0, atol=1e-9)


def test_documents_side_by_side_do_not_run_into_each_other() -> None:
    """The answer's bigram (7, 8) stands in neither text, only where one ends on a word's last bit and the next begins."""
    answer, reference, saved = [7, 8], [1] * 63 + [7], [8, 1]
    together = bleu_of_pairs(Ragged.of([answer]), [Ragged.of([reference]), Ragged.of([saved])], 2, None, "method1")
    alone = [bleu([answer], [[document]], order=2, smoothing="method1")[0] for document in (reference, saved)]
    assert [score[0] for score in together] == alone
    assert alone[0] == pytest.approx(nltk_score([reference], answer, [0.5, 0.5], "method1"))


def test_edge_cases_are_as_documented() -> None:
    assert bleu([[], [5], [5], []], [[[1, 2]], [[5]], [[6]], [[]]]).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert 0 < bleu([[1, 2]], [[[1, 3]]], order=2, smoothing="method0")[0] < 1e-100
    assert np.isnan(bleu([[1, 2, 3]], [[[3, 2, 1]]], smoothing="method6")[0])
    assert bleu([], []).shape == (0,)


@pytest.mark.parametrize(
    ("candidates", "references", "options", "message"),
    [
        ([[1]], [[]], {}, "no reference"),
        ([[1]], [], {}, "references for 0"),
        ([[-1]], [[[1]]], {}, "negative"),
        ([[2**40]], [[[1]]], {}, "31 bits"),
        ([[1]], [[[1]]], {"weights": [1.0]}, "order 4"),
        ([[1]], [[[1]]], {"smoothing": "exp", "weights": [0.25] * 4}, "exp"),
        ([[1]], [[[1]]], {"smoothing": "method4", "effective_order": True}, "sacrebleu"),
        ([[1]], [[[1]]], {"smoothing": "method6", "order": 2}, "order 3"),
        ([[1]], [[[1]]], {"smoothing": "method9"}, "method9"),
    ],
)
def test_what_does_not_go_together_is_refused(candidates: list, references: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bleu(candidates, references, **options)
