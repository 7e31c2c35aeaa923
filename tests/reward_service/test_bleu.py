"""BLEU against NLTK and sacrebleu, on more than ten thousand random cases of all the awkward
kinds."""

import logging
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from common.config.components import Smoothing
from reward_service.components.bleu import bleu, bleu_of_either, bleu_of_pairs
from reward_service.components.tokens import Ragged

CASES = 160
"""Random cases of each smoothing with each order and each set of weights."""
LENGTHS = (0, 1, 2, 3, 4, 5, 8, 20, 63, 64, 65, 130)


def random_cases(count: int, seed: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Candidates with one to three references; small vocabularies, so that n-grams repeat; lengths
    around the 64 bits of a word."""
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


def nltk_score(
    references: Sequence[Sequence[int]],
    candidate: Sequence[int],
    weights: Sequence[float],
    method: str,
    **constants: float,
) -> float:
    """nan where NLTK refuses (method6 without a trigram match)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(
                sentence_bleu(
                    references,
                    candidate,
                    tuple(weights),
                    getattr(SmoothingFunction(**constants), method),
                )
            )
        except AssertionError:
            return float("nan")


def sacrebleu_scores(
    candidates: Sequence[Sequence[int]],
    references: Sequence[Sequence[Sequence[int]]],
    order: int,
    method: str,
    **more: Any,
) -> list[float]:
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    metric = sacrebleu.BLEU(tokenize="none", smooth_method=method, max_ngram_order=order, **more)

    def text(tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))

    return [
        metric.sentence_score(text(c), [text(r) for r in own]).score / 100
        for c, own in zip(candidates, references, strict=True)
    ]


WEIGHTS = [
    (1.0,),
    (0.5, 0.5),
    (0.3, 0.3, 0.4),
    (0.25, 0.25, 0.25, 0.25),
    (0.2, 0.2, 0.3, 0.3),
    (0.6, 0.0, 0.3, 0.3),
]
METHODS = [
    (f"method{i}", weights) for i in range(8) for weights in WEIGHTS if i != 6 or len(weights) >= 3
]
"""NLTK defines method6 from order 3 on."""
SACREBLEU = [
    (method, order) for method in ("none", "floor", "add-k", "exp") for order in (1, 2, 3, 4)
]


@pytest.mark.parametrize(("method", "weights"), METHODS)
def test_every_smoothing_of_nltk_gives_nltks_score(
    method: Smoothing, weights: tuple[float, ...]
) -> None:
    candidates, references = random_cases(CASES, seed=len(weights))
    ours = bleu(candidates, references, order=len(weights), weights=weights, smoothing=method)
    theirs = [
        nltk_score(own, candidate, weights, method)
        for candidate, own in zip(candidates, references, strict=True)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert 0 < np.count_nonzero(ours > 0) < len(ours)


@pytest.mark.parametrize("effective_order", [False, True])
@pytest.mark.parametrize(("method", "order"), SACREBLEU)
def test_every_smoothing_of_sacrebleu_gives_sacrebleus_score(
    method: Smoothing, order: int, effective_order: bool
) -> None:
    candidates, references = random_cases(CASES, seed=order)
    ours = bleu(
        candidates, references, order=order, smoothing=method, effective_order=effective_order
    )
    theirs = sacrebleu_scores(
        candidates, references, order, method, effective_order=effective_order
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_the_cases_are_ten_thousand() -> None:
    assert CASES * (len(METHODS) + 2 * len(SACREBLEU)) >= 10_000
    candidates, references = random_cases(CASES, seed=4)
    assert {0, 1} <= {len(candidate) for candidate in candidates}
    assert {1, 2, 3} == {len(own) for own in references}


@pytest.mark.parametrize(
    ("method", "name", "constant"),
    [
        ("method1", "epsilon", 0.03),
        ("method4", "k", 2.5),
        ("method6", "alpha", 3.0),
        ("method7", "k", 9.0),
        ("method7", "k", 1.5),
    ],
)
def test_a_constant_of_ones_own_is_nltks(method: Smoothing, name: str, constant: float) -> None:
    candidates, references = random_cases(CASES, seed=9)
    ours = bleu(candidates, references, smoothing=method, constant=constant)
    theirs = [
        nltk_score(own, c, [0.25] * 4, method, **{name: constant})
        for c, own in zip(candidates, references, strict=True)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("method", "constant"), [("floor", 0.02), ("add-k", 0.5)])
def test_a_constant_of_ones_own_is_sacrebleus(method: Smoothing, constant: float) -> None:
    candidates, references = random_cases(CASES, seed=9)
    theirs = sacrebleu_scores(candidates, references, 4, method, smooth_value=constant)
    np.testing.assert_allclose(
        bleu(candidates, references, smoothing=method, constant=constant), theirs, rtol=0, atol=1e-9
    )


# --- two documents at once, as a turn is compared -------------------------------------------------


def two_documents(seed: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Candidates, references and saved interactions."""
    candidates, references = random_cases(CASES, seed)
    return candidates, [own[0] for own in references], random_cases(CASES, seed + 100)[0]


def apart_and_together(
    candidates: list[list[int]], first: list[list[int]], second: list[list[int]], *how: Any
) -> np.ndarray:
    """BLEU with the first document, with the second, and with both as references: [3, cases]."""
    ragged, documents = Ragged.of(candidates), [Ragged.of(first), Ragged.of(second)]
    return np.array(
        [*bleu_of_pairs(ragged, documents, *how), bleu_of_either(ragged, documents, *how)]
    )


@pytest.mark.parametrize(("method", "weights"), METHODS)
def test_documents_apart_and_together_score_as_by_nltk(
    method: Smoothing, weights: tuple[float, ...]
) -> None:
    candidates, first, second = two_documents(seed=10 + len(weights))
    theirs = [
        [nltk_score(documents, c, weights, method) for documents in ([one], [other], [one, other])]
        for c, one, other in zip(candidates, first, second, strict=True)
    ]
    ours = apart_and_together(candidates, first, second, len(weights), weights, method)
    np.testing.assert_allclose(ours, np.transpose(theirs), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("method", "order"), SACREBLEU)
def test_documents_apart_and_together_score_as_by_sacrebleu(method: Smoothing, order: int) -> None:
    candidates, first, second = two_documents(seed=20 + order)
    references = (
        [[one] for one in first],
        [[other] for other in second],
        [list(pair) for pair in zip(first, second, strict=True)],
    )
    theirs = [
        sacrebleu_scores(candidates, own, order, method, effective_order=True) for own in references
    ]
    ours = apart_and_together(candidates, first, second, order, None, method)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_a_long_document_beside_short_ones_is_matched_exactly() -> None:
    rng = random.Random(5)
    candidates = [[rng.randrange(6) for _ in range(n)] for n in (3, 700, 1, 64)]
    references = [[[rng.randrange(6) for _ in range(n)]] for n in (900, 500, 128, 2)]
    theirs = [
        nltk_score(own, candidate, [0.25] * 4, "method4")
        for candidate, own in zip(candidates, references, strict=True)
    ]
    np.testing.assert_allclose(bleu(candidates, references), theirs, rtol=0, atol=1e-9)


def test_documents_side_by_side_do_not_run_into_each_other() -> None:
    """The answer's bigram (7, 8) stands in neither text, only where one ends on a word's last bit
    and the next begins."""
    answer, reference, saved = [7, 8], [1] * 63 + [7], [8, 1]
    together = bleu_of_pairs(
        Ragged.of([answer]), [Ragged.of([reference]), Ragged.of([saved])], 2, None, "method1"
    )
    alone = [
        bleu([answer], [[document]], order=2, smoothing="method1")[0]
        for document in (reference, saved)
    ]
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
def test_what_does_not_go_together_is_refused(
    candidates: list, references: list, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bleu(candidates, references, **options)
