"""Sentence BLEU of a whole batch on token ids (Papineni et al. 2002), with the smoothings of NLTK
and of sacrebleu.

Matching is exact, for no n-gram is taken for another by its hash (`kernels.clipped_matches`): sets
of bits say where in a document the n-grams stand that begin at each position of a candidate, of
every order from those of the order below at the next position. Work grows with candidate length ×
document length / 64, and so does scratch memory, by 8 bytes a text: right for answers, not for
books.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import get_args

import numpy as np

from common.config.components import Bleu, Smoothing
from reward_service.comparison import Compared
from reward_service.components import ngrams as kernels
from reward_service.components.component import RewardComponent
from reward_service.components.tokens import Ragged, side_by_side

CONSTANTS = {
    "method1": 0.1,
    "method4": 5.0,
    "method6": 5.0,
    "method7": 5.0,
    "floor": 0.1,
    "add-k": 1.0,
}
"""Epsilon of method1, K of method4 and method7, alpha of method6, and sacrebleu's smooth_value, as
both packages set them."""


def bleu(
    candidates: Sequence[Sequence[int]],
    references: Sequence[Sequence[Sequence[int]]],
    order: int = 4,
    weights: Sequence[float] | None = None,
    smoothing: Smoothing = "method4",
    constant: float | None = None,
    effective_order: bool = False,
) -> np.ndarray:
    """BLEU in [0, 1] of each candidate against its references: float64 [batch].

    references: for each candidate one or more. weights: of each order, uniform if None; NLTK's
    methods only.
    constant: the smoothing's parameter, see CONSTANTS. effective_order: sacrebleu's smoothings
    only, as there. "method0" to "method7" equal nltk.translate.bleu_score.sentence_bleu, the others
    sacrebleu's sentence score / 100; where those are odd, so is this, on purpose:
    * no common token (an empty candidate included): 0, whatever the smoothing;
    * method0 takes the smallest float for an order without a match, so that the score is 1e-78,
      say, and not 0;
    * method4 leaves a one-token candidate unsmoothed, and precisions of 0 drop out: "a" against "a"
      scores 1;
    * method5 and method7 look at 5-grams after the last order, whatever it is. method6 divides by
      the trigram precision: where no trigram matches NLTK raises, and here the row is nan.
    ValueError: an empty list of references, a bad id, or parameters that do not go together.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates, but references for {len(references)}")
    most = max(map(len, references), default=1)
    if min(map(len, references), default=1) == 0:
        raise ValueError("a candidate has no reference to be compared with")
    hypotheses = Ragged.of(candidates)
    columns = [
        Ragged.of([refs[k] if k < len(refs) else () for refs in references]) for k in range(most)
    ]
    present = np.array(
        [[k < len(refs) for k in range(most)] for refs in references], dtype=bool
    ).reshape(len(references), most)
    matches = clipped_matches(hypotheses, [columns], counted_order(order, smoothing))[0]
    closest = closest_lengths(hypotheses, columns, present)
    return score(
        matches, hypotheses.lengths, closest, order, weights, smoothing, constant, effective_order
    )


def closest_lengths(
    candidates: Ragged, columns: Sequence[Ragged], present: np.ndarray
) -> np.ndarray:
    """Length of the reference closest to each candidate's; of two equally close ones the shorter.
    present: bool [batch, columns]."""
    lengths = np.stack([column.lengths for column in columns], axis=1)
    own = candidates.lengths[:, None]
    distance = np.where(present, np.abs(lengths - own) * 2 + (lengths > own), sys.maxsize)
    return np.take_along_axis(lengths, distance.argmin(axis=1)[:, None], axis=1)[:, 0]


def bleu_of_pairs(
    candidates: Ragged,
    documents: Sequence[Ragged],
    order: int,
    weights: Sequence[float] | None,
    smoothing: Smoothing,
) -> list[np.ndarray]:
    """BLEU of each candidate against its row of each document column by itself; with sacrebleu's
    smoothings of effective order."""
    matches = clipped_matches(
        candidates, [[document] for document in documents], counted_order(order, smoothing)
    )
    return [
        score(
            matched,
            candidates.lengths,
            document.lengths,
            order,
            weights,
            smoothing,
            None,
            not smoothing.startswith("method"),
        )
        for matched, document in zip(matches, documents, strict=True)
    ]


def bleu_of_either(
    candidates: Ragged,
    documents: Sequence[Ragged],
    order: int,
    weights: Sequence[float] | None,
    smoothing: Smoothing,
) -> np.ndarray:
    """BLEU of each candidate with its rows of all document columns as references; effective order
    as in `bleu_of_pairs`."""
    matches = clipped_matches(candidates, [documents], counted_order(order, smoothing))[0]
    closest = closest_lengths(
        candidates, documents, np.ones((len(candidates), len(documents)), dtype=bool)
    )
    return score(
        matches,
        candidates.lengths,
        closest,
        order,
        weights,
        smoothing,
        None,
        not smoothing.startswith("method"),
    )


def counted_order(order: int, smoothing: Smoothing) -> int:
    """Highest order whose matches the smoothing needs."""
    return max(order, 5) if smoothing in ("method5", "method7") else order


# --- counting -------------------------------------------------------------------------------------


def clipped_matches(
    candidates: Ragged, groups: Sequence[Sequence[Ragged]], order: int
) -> np.ndarray:
    """Matched n-grams of each candidate, clipped at the largest count in any one reference: int64
    [groups, batch, order].

    groups: each a list of reference columns (one row per candidate, empty rows match nothing) that
    are counted together.
    """
    out = np.zeros((len(groups), len(candidates), order), dtype=np.int64)
    documents = [document for group in groups for document in group]
    group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    flat, (own, *others) = side_by_side([candidates, *documents])
    starts, lengths = np.array(others), np.array([document.lengths for document in documents])
    kernels.clipped_matches(flat, own, candidates.lengths, starts, lengths, group_of, out)
    return out


# --- from counts to scores ------------------------------------------------------------------------


def score(
    matches: np.ndarray,
    lengths: np.ndarray,
    reference_lengths: np.ndarray,
    order: int,
    weights: Sequence[float] | None,
    smoothing: Smoothing,
    constant: float | None,
    effective_order: bool,
) -> np.ndarray:
    """BLEU from clipped matches [batch, counted_order] and the lengths of candidates and closest
    references [batch]."""
    if smoothing not in get_args(Smoothing):
        raise ValueError(
            f"unknown smoothing {smoothing!r}, valid are {', '.join(get_args(Smoothing))}"
        )
    of_nltk = smoothing.startswith("method")
    if effective_order and of_nltk:
        raise ValueError(f"effective order belongs to sacrebleu's smoothings, not to {smoothing!r}")
    if weights is not None and (not of_nltk or len(weights) != order):
        raise ValueError(
            f"weights {tuple(weights)} do not go with order {order} and smoothing {smoothing!r}"
        )
    if constant is None:
        constant = CONSTANTS.get(smoothing, 0.0)
    totals = np.maximum(lengths[:, None] - np.arange(matches.shape[1]), 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        brevity = np.where(
            lengths >= reference_lengths, 1.0, np.exp(1.0 - reference_lengths / lengths)
        )
        if of_nltk:
            precisions = _precisions_nltk(
                smoothing, matches.astype(np.float64), totals, lengths, order, constant
            )
            chosen = (
                np.full(order, 1.0 / order)
                if weights is None
                else np.asarray(weights, dtype=np.float64)
            )
            # NLTK leaves orders out whose precision is still 0 after smoothing.
            mean_log = (chosen * np.log(np.where(precisions == 0, 1.0, precisions))).sum(axis=1)
        else:
            mean_log = _mean_log_sacrebleu(
                smoothing,
                matches.astype(np.float64),
                totals.astype(np.float64),
                constant,
                effective_order,
            )
        return np.where(matches.any(axis=1), brevity * np.exp(mean_log), 0.0)


def _precisions_nltk(
    method: Smoothing,
    matches: np.ndarray,
    totals: np.ndarray,
    lengths: np.ndarray,
    order: int,
    constant: float,
) -> np.ndarray:
    """Smoothed precisions [batch, order] (Chen and Cherry 2014, as NLTK computes them)."""
    fifth = (
        matches[:, 4] / np.maximum(totals[:, 4], 1)
        if method in ("method5", "method7")
        else np.zeros(len(matches))
    )
    matches, totals = matches[:, :order], totals[:, :order]
    at_least_one = np.maximum(totals, 1)
    missing = matches == 0
    nth_missing = np.cumsum(missing, axis=1)
    precisions = matches / at_least_one
    if method == "method0":
        precisions[missing] = sys.float_info.min
    elif method == "method1":
        precisions = np.where(missing, constant / at_least_one, precisions)
    elif method == "method2":
        precisions[:, 1:] = (matches[:, 1:] + 1) / (at_least_one[:, 1:] + 1)
    elif method == "method3":
        precisions = np.where(missing, 1 / (2.0**nth_missing * at_least_one), precisions)
    elif method in ("method4", "method7"):
        # Of a one-token candidate the logarithm is 0, and so the precision stays 0, as NLTK leaves
        # it.
        precisions = np.where(
            missing,
            np.log(lengths)[:, None] / (2.0**nth_missing * constant * at_least_one),
            precisions,
        )
    if method in ("method5", "method7"):
        following = np.concatenate([precisions[:, 1:], fifth[:, None]], axis=1)
        previous = precisions[:, 0] + 1
        for n in range(order):
            previous = precisions[:, n] = (previous + precisions[:, n] + following[:, n]) / 3
    if method == "method6":
        if order < 3:
            raise ValueError("method6 needs order 3 or more")
        for n in range(2, order):
            before, last = precisions[:, n - 2], precisions[:, n - 1]
            prior = np.where(before == 0, 0.0, last**2 / before)
            precisions[:, n] = (matches[:, n] + constant * prior) / (totals[:, n] + constant)
        precisions[missing[:, 2]] = np.nan
    return precisions


def _mean_log_sacrebleu(
    method: Smoothing,
    matches: np.ndarray,
    totals: np.ndarray,
    constant: float,
    effective_order: bool,
) -> np.ndarray:
    """Mean log precision over the orders that count [batch]; -inf where one of them has none."""
    if method == "add-k":
        matches[:, 1:] += constant
        totals[:, 1:] += constant
    reached = np.logical_and.accumulate(totals > 0, axis=1)
    missing = reached & (matches == 0)
    precisions = np.where(reached, matches / totals, 0.0)
    if method == "exp":
        precisions = np.where(missing, 1 / (2.0 ** np.cumsum(missing, axis=1) * totals), precisions)
    elif method == "floor":
        precisions = np.where(missing, constant / totals, precisions)
    logs = np.log(precisions)
    if not effective_order:
        return logs.mean(axis=1)
    return np.where(reached, logs, 0.0).sum(axis=1) / np.maximum(reached.sum(axis=1), 1)


# --- the component --------------------------------------------------------------------------------


def bleu_reward(
    section: Bleu, answers: Ragged, reference: Ragged, saved: Ragged, forms: np.ndarray
) -> np.ndarray:
    """Weighted BLEU of answers with the reference and the saved interaction, or one BLEU with both:
    float64 [turns].

    forms [turns]: where the topic changes, one minus BLEU with the saved interaction counts.
    """
    settings = section.order, section.order_weights, section.smoothing
    changes = forms == "topic_change"
    if section.saved == 0:
        return bleu_of_pairs(answers, [reference], *settings)[0]
    if section.combined and not changes.any():
        return bleu_of_either(answers, [reference, saved], *settings)
    if section.reference == 0:
        (to_saved,) = bleu_of_pairs(answers, [saved], *settings)
        return np.where(changes, 1 - to_saved, to_saved)
    to_reference, to_saved = bleu_of_pairs(answers, [reference, saved], *settings)
    to_saved = np.where(changes, 1 - to_saved, to_saved)
    apart = (section.reference * to_reference + section.saved * to_saved) / (
        section.reference + section.saved
    )
    if not section.combined:
        return apart
    # Where the topic changes an answer cannot be like one text or unlike the other at once: there
    # the two stay apart.
    return np.where(changes, apart, bleu_of_either(answers, [reference, saved], *settings))


def _score(section: Bleu, compared: Compared) -> np.ndarray:
    texts = compared.texts
    return bleu_reward(
        section, texts.answers, texts.references, texts.saved_interactions, texts.forms
    )


BLEU = RewardComponent(Bleu, _score)
