"""Cosine similarity of texts by their embeddings, clamped at 0.

The embedding of a text is the mean of its token embeddings, by a frozen float32 matrix [vocabulary,
width] that is given once. The matrix must not be the trainable one of the policy: a reward that
moves with the policy can be raised by moving the embedding. Where the settings name a
sentence-transformers model, it is that model's vector (`sentences.py`); all that follows is the
same.
"""

from __future__ import annotations

import numpy as np

from common.config.components import Cosine
from common.episode import Turn
from common.failures import InputError
from reward_service.comparison import Compared, ComparedTexts, remembered_text
from reward_service.components.component import RewardComponent, Source
from reward_service.components.model import pin_model, weights_digest
from reward_service.components.ngrams import embedding_sums
from reward_service.components.sentences import (
    open_sentence_model,
    require_sentence_model,
    sentence_vectors,
)
from reward_service.components.tokens import Ragged


def embed(embedding: np.ndarray, texts: Ragged) -> np.ndarray:
    """Sum of each text's token embeddings: float32 [texts, width]; 0 for an empty text.

    The sum and not the mean, for the sum of two texts is that of one after the other, and `unit`
    takes the length away. ValueError where a token lies outside the embedding.
    """
    out = np.zeros((len(texts), embedding.shape[1]), dtype=np.float32)
    if texts.flat.size == 0:
        return out
    if texts.flat.max() >= len(embedding):
        raise ValueError(
            f"token id {texts.flat.max()} lies outside an embedding of {len(embedding)} tokens"
        )
    embedding_sums(embedding, texts.flat, texts.starts, texts.lengths, out)
    return out


def unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalised rows; a row of zeros stays, and is like nothing."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of unit rows, clamped to [0, 1]: float64 [rows]."""
    return np.clip(np.einsum("rd,rd->r", a, b, dtype=np.float64), 0.0, 1.0)


def running_means(vectors: np.ndarray, positions: np.ndarray, decay: float) -> np.ndarray:
    """Running mean after each interaction of several conversations at once: [rows, width].

    The first interaction is the mean; then mean = (1 - decay) * interaction + decay * mean.
    vectors: unit embeddings [rows, width]. positions [rows]: 0 starts a mean, and a row of position
    p > 0 goes on from the row before it, which has position p - 1.
    """
    means = vectors.copy()
    for position in range(1, int(positions.max(initial=0)) + 1):
        rows = np.flatnonzero(positions == position)
        means[rows] = (1 - decay) * vectors[rows] + decay * means[rows - 1]
    return means


def cosine_reward(
    section: Cosine,
    answer: np.ndarray,
    reference: np.ndarray,
    saved: np.ndarray,
    running: np.ndarray,
    forms: np.ndarray,
) -> np.ndarray:
    """Weighted likeness of each answer, in [0, 1]: float64 [turns].

    answer, reference, saved: unit rows [turns, width]. running: unit rows of the running mean, of
    zeros where there is none yet; its weight is then shared among the other terms, in proportion.
    forms [turns]: each turn's `Form`. Standard: likeness to all three. Topic change: *un*likeness
    to the saved interaction. Long
    range: unlikeness to the running mean, which holds what came in between.
    """
    to_saved, to_running = likeness(answer, saved), likeness(answer, running)
    to_saved = np.where(forms == "topic_change", 1 - to_saved, to_saved)
    to_running = np.where(forms == "long_range", 1 - to_running, to_running)
    running_weight = np.where(running.any(axis=1), section.running, 0.0)
    total = (
        section.reference * likeness(answer, reference)
        + section.saved * to_saved
        + running_weight * to_running
    )
    return total / (section.reference + section.saved + running_weight)


def _score(section: Cosine, compared: Compared) -> np.ndarray:
    texts = compared.texts
    if section.model is None:
        vectors = texts.vectors(embed(compared.batch.embedding, texts.tokens))
        answers, references, remembered = map(unit, vectors)
    else:
        answers, references, remembered = _by_model(section.model, section.running > 0, texts)
    running = np.zeros_like(answers)
    if section.running > 0 and len(texts.means_over):
        positions = np.zeros(len(texts.turns), dtype=np.int64)
        positions[texts.means_over] = texts.mean_positions
        means = running_means(remembered, positions, section.decay)
        running[texts.with_mean] = unit(means[texts.mean_ends])
    return cosine_reward(
        section, answers, references, remembered[texts.saved], running, texts.forms
    )


def _by_model(
    model: str, running: bool, texts: ComparedTexts
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows of answers and references [comparisons, width], and of what every needed turn left
    in memory [turns, width]: 0 where no other turn is compared with it. running: whether there is a
    running mean."""
    own = [texts.turns[i] for i in texts.own.tolist()]
    compared_with = np.unique(
        np.concatenate([texts.saved, texts.means_over]) if running else texts.saved
    )
    saved = [texts.turns[i] for i in compared_with.tolist()]
    written = (
        [turn.answer for turn in own]
        + [turn.reference for turn in own]
        + [remembered_text(turn) for turn in saved]
    )
    answers, references, left = np.split(
        unit(sentence_vectors(model, written)), [len(own), 2 * len(own)]
    )
    remembered = np.zeros((len(texts.turns), left.shape[1]), dtype=left.dtype)
    remembered[compared_with] = left
    return answers, references, remembered


def _check(section: Cosine, key: str, _sample: Turn | None) -> None:
    assert section.model is not None
    try:
        require_sentence_model(section.model)
    except InputError as error:
        raise InputError(f"{key}.model", str(error)) from error


def _open(section: Cosine) -> None:
    assert section.model is not None
    open_sentence_model(section.model)


COSINE = RewardComponent(
    Cosine, _score, source=Source("model", weights_digest, _check, _open, pin=pin_model)
)
