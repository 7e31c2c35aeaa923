"""What each answer is held against, and the token texts that this takes.

The strategy of an episode decides. Turn 0 is the opening interaction; it is never rewarded.

    single       every turn, STANDARD: saved = the opening
    cumulative   every turn, STANDARD: saved = the interaction before; mean over those before
    long_term    first, TOPIC CHANGE: saved = the opening, to be unlike it; not in the running mean
                 middle, STANDARD as in cumulative
                 last, LONG RANGE: saved = the opening again, unlike the running mean between
                 (an only turn has nothing in between and is STANDARD)

"Saved" is the query and answer that memory was really written with (`Turn.remembered_ids`). The
interaction before the last turn does not enter the long-range running mean, which lags by one as in
every other turn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from common.config.rewards import Bleu, Cosine, Length, Repetition
from common.episode import Strategy, Turn
from reward_service.components.bleu import bleu_of_either, bleu_of_pairs
from reward_service.components.cosine import Form, cosine_reward, embed, running_means, unit
from reward_service.components.form import repetition_reward
from reward_service.components.length import length_reward
from reward_service.components.tokens import Ragged


class Comparison(NamedTuple):
    """What one turn is held against. All numbers count turns of the whole batch in a row, episode
    after episode."""

    turn: int
    form: Form
    saved: int
    mean_from: int
    mean_to: int
    """The running mean is over turns mean_from … mean_to - 1; where the two are equal there is none
    yet."""


def comparisons(strategy: Strategy, turns: int, first: int = 0) -> list[Comparison]:
    """The comparison of each answered turn of an episode of `turns` turns whose opening is number
    `first`."""
    last = turns - 1
    plan = []
    for turn in range(1, turns):
        form: Form = "standard"
        saved, mean_from = turn - 1, 0
        if strategy == "single":
            saved, mean_from = 0, turn
        elif strategy == "long_term":
            mean_from = 1
            if turn == 1 < last:
                form = "topic_change"
            elif 1 < turn == last:
                form, saved = "long_range", 0
        mean_to = max(mean_from, turn - 1)
        plan.append(
            Comparison(first + turn, form, first + saved, first + mean_from, first + mean_to)
        )
    return plan


class ComparedTexts:
    """The texts of some comparisons, without special tokens, side by side. Each method scores one
    component: float64 [comparisons]."""

    def __init__(
        self, turns: Sequence[Turn], group: Sequence[Comparison], special_ids: Collection[int]
    ):
        """turns: all those that the group's numbers count. Only the turns that are compared are
        looked at.

        ValueError or TypeError where their tokens are none.
        """
        turn, forms, saved_turn, mean_from, mean_to = zip(*group, strict=True)
        self._forms, own, saved = np.array(forms), np.array(turn), np.array(saved_turn)
        self._mean_from, self._mean_to = np.array(mean_from), np.array(mean_to)
        self._means_over, self._mean_position = _ranges(self._mean_from, self._mean_to)
        self._needed = np.unique(np.concatenate([own, saved, self._means_over]))
        self._own, self._saved = self._row(own), self._row(saved)
        self._turns = [turns[number] for number in self._needed.tolist()]

        # In the flat array, a query is followed by what memory was written with, so that the two
        # are one span.
        sequences: list[Sequence[int]] = []
        forced = np.zeros(len(self._needed), dtype=np.int64)
        for i, turn in enumerate(self._turns):
            if turn.teacher_forced:
                forced[i] = 1
                sequences += (turn.answer_ids, turn.query_ids, turn.reference_ids)
            else:
                sequences += (turn.query_ids, turn.answer_ids, turn.reference_ids)
        texts = Ragged.of(sequences).without(special_ids)
        row = 3 * np.arange(len(self._needed))
        self._texts, self._query, self._answer, self._reference = (
            texts,
            row + forced,
            row + 1 - forced,
            row + 2,
        )
        query = texts.take(self._query)
        self._remembered = Ragged(
            texts.flat, query.starts, query.lengths + texts.lengths[self._query + 1]
        )

    def _row(self, numbers: np.ndarray) -> np.ndarray:
        """Where the turns of these numbers stand among the needed ones."""
        return np.searchsorted(self._needed, numbers)

    def bleu(self, section: Bleu) -> np.ndarray:
        """Weighted BLEU with reference and saved interaction, or one BLEU with both; unlikeness to
        the latter where the topic changes."""
        answers = self._texts.take(self._answer[self._own])
        reference, saved = (
            self._texts.take(self._reference[self._own]),
            self._remembered.take(self._saved),
        )
        changes = self._forms == "topic_change"

        def of_pairs(*documents: Ragged) -> list[np.ndarray]:
            return bleu_of_pairs(
                answers, documents, section.order, section.order_weights, section.smoothing
            )

        if section.saved == 0:
            return of_pairs(reference)[0]
        if section.combined and not changes.any():
            return bleu_of_either(
                answers, [reference, saved], section.order, section.order_weights, section.smoothing
            )
        if section.reference == 0:
            (to_saved,) = of_pairs(saved)
            return np.where(changes, 1 - to_saved, to_saved)
        to_reference, to_saved = of_pairs(reference, saved)
        to_saved = np.where(changes, 1 - to_saved, to_saved)
        apart = (section.reference * to_reference + section.saved * to_saved) / (
            section.reference + section.saved
        )
        if not section.combined:
            return apart
        # Where the topic changes an answer cannot be like one text or unlike the other at once:
        # there the two stay apart.
        both = bleu_of_either(
            answers, [reference, saved], section.order, section.order_weights, section.smoothing
        )
        return np.where(changes, apart, both)

    def cosine(self, section: Cosine, embedding: np.ndarray) -> np.ndarray:
        """Weighted likeness of embeddings: of `section.model` where it names one, else by the token
        embedding given."""
        answer, reference, remembered = (
            self._by_tokens(embedding)
            if section.model is None
            else self._by_model(section.model, section.running > 0)
        )
        running = np.zeros_like(answer)
        if section.running > 0 and len(self._means_over):
            positions = np.zeros(len(self._needed), dtype=np.int64)
            positions[self._row(self._means_over)] = self._mean_position
            means = running_means(remembered, positions, section.decay)
            begun = np.flatnonzero(self._mean_to > self._mean_from)
            running[begun] = unit(means[self._row(self._mean_to[begun] - 1)])
        return cosine_reward(
            section, answer, reference, remembered[self._saved], running, self._forms
        )

    def _by_tokens(self, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit rows of answers and references [comparisons, width], and of what every needed turn
        left in memory [needed, width]."""
        sums = embed(embedding, self._texts)
        remembered = unit(sums[self._query] + sums[self._query + 1])
        return (
            unit(sums[self._answer[self._own]]),
            unit(sums[self._reference[self._own]]),
            remembered,
        )

    def _by_model(self, model: str, running: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_by_tokens`. Rows of turns that no other is compared with are left at 0. running:
        whether there is a running mean."""
        # Here and not at the top: it brings torch, which a service without such a model does
        # without.
        from reward_service.components.sentences import sentence_vectors

        own = [self._turns[i] for i in self._own.tolist()]
        looked_back_to = np.unique(
            np.concatenate([self._saved, self._row(self._means_over)]) if running else self._saved
        )
        saved = [self._turns[i] for i in looked_back_to.tolist()]
        texts = (
            [turn.answer for turn in own]
            + [turn.reference for turn in own]
            + [remembered_text(turn) for turn in saved]
        )
        answers, references, left = np.split(
            unit(sentence_vectors(model, texts)), [len(own), 2 * len(own)]
        )
        remembered = np.zeros((len(self._needed), left.shape[1]), dtype=left.dtype)
        remembered[looked_back_to] = left
        return answers, references, remembered

    def length(self, section: Length) -> np.ndarray:
        lengths = self._texts.lengths
        return length_reward(
            section, lengths[self._answer[self._own]], lengths[self._reference[self._own]]
        )

    def repetition(self, section: Repetition) -> np.ndarray:
        answers = self._texts.take(self._answer[self._own])
        spans = zip(answers.starts.tolist(), answers.lengths.tolist(), strict=True)
        return repetition_reward(
            section, [answers.flat[start : start + length].tolist() for start, length in spans]
        )


def remembered_text(turn: Turn) -> str:
    """`Turn.remembered_ids` as text: the query, and what memory was written with after it."""
    return f"{turn.query} {turn.reference if turn.teacher_forced else turn.answer}"


def _ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of all ranges in a row, and the place of each in its range."""
    sizes = stops - starts
    places = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(starts, sizes) + places, places
