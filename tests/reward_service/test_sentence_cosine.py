"""Cosine by a sentence-transformers model, against vectors computed with transformers alone."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel, BertTokenizerFast

from common.config.components import Cosine
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Strategy, Turn
from common.failures import InputError
from reward_service.components.sentences import sentence_vectors
from reward_service.compose import score_episodes
from reward_service.preflight import require_rewards

WORDS = (
    "what",
    "is",
    "the",
    "name",
    "of",
    "my",
    "dog",
    "called",
    "rex",
    "max",
    "and",
    "lives",
    "in",
    "oslo",
    "york",
    "she",
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a WordPiece vocabulary of a few words."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("sentences"))
    SentenceTransformer(
        modules=[modules.Transformer(str(bert)), modules.Pooling(32)], device="cpu"
    ).save(folder)
    return folder


class Direct:
    """Mean of BERT's last hidden states over a text's tokens, one text at a time."""

    def __init__(self, bert: Path):
        self._tokenizer, self._bert = (
            BertTokenizerFast.from_pretrained(bert),
            BertModel.from_pretrained(bert).eval(),
        )

    def unit(self, text: str) -> np.ndarray:
        with torch.no_grad():
            vector = (
                self._bert(**self._tokenizer(text, return_tensors="pt"))
                .last_hidden_state[0]
                .mean(dim=0)
                .double()
                .numpy()
            )
        return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def direct(bert: Path) -> Direct:
    return Direct(bert)


def like(a: np.ndarray, b: np.ndarray) -> float:
    return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


def turn(query: str, answer: str, reference: str, **more: Any) -> Turn:
    """The same tokens in every turn: what differs is the text."""
    return Turn(
        [2, 5, 9, 6],
        [10, 3],
        [-1.0, -1.0],
        [10, 3],
        query=query,
        answer=answer,
        reference=reference,
        **more,
    )


TURNS = (
    turn("my dog is called rex", "rex is my dog", "rex is my dog"),
    turn("what is the name of my dog", "rex", "max is the name"),
    turn("she lives in oslo", "she lives in york", "in oslo", teacher_forced=True),
    turn("what is my dog called", "max and rex", "rex"),
    turn("what is oslo", "the name", "of york"),
)


def cosine_of(strategy: Strategy, section: Cosine, turns: tuple[Turn, ...] = TURNS) -> list[float]:
    mix = RewardMix(bleu=None, cosine=section, length=None, recall=None)
    rewards = Rewards(single=mix, cumulative=mix, long_term=mix)
    (scored,) = score_episodes(
        [Episode("e", "t", 0, turns, 0, strategy=strategy)],
        rewards,
        np.eye(16, dtype=np.float32),
        range(8),
    )
    return [turn.rewards["cosine"] for turn in scored.answered]


def test_vectors_are_the_models_own_whatever_stands_beside_them(model: str, direct: Direct) -> None:
    texts = ["rex", "", "what is the name of my dog", "rex", " ", "she lives in oslo and york"]
    vectors = sentence_vectors(model, texts)
    assert vectors.dtype == np.float32
    assert not vectors[[1, 4]].any(), "an empty text is like nothing"
    assert (vectors[0] == vectors[3]).all()
    for i in (0, 2, 5):
        np.testing.assert_allclose(
            vectors[i] / np.linalg.norm(vectors[i]), direct.unit(texts[i]), atol=1e-5
        )
    assert sentence_vectors(model, ["", ""]).any() == np.False_


def test_answers_are_held_against_reference_saved_interaction_and_running_mean(
    model: str, direct: Direct
) -> None:
    answers, references = (
        [direct.unit(text) for text in texts]
        for texts in zip(*((t.answer, t.reference) for t in TURNS), strict=True)
    )
    saved = [
        direct.unit(f"{t.query} {t.reference if t.teacher_forced else t.answer}") for t in TURNS
    ]
    assert like(saved[2], direct.unit("she lives in oslo she lives in york")) < 0.999, (
        "memory was written with the reference there"
    )
    mean = [saved[0]]
    for vector in saved[1:]:
        mean.append(0.8 * vector + 0.2 * mean[-1])
    # Before there is a running mean, its weight is shared by the other two: 0.3 and 0.5 of 0.8.
    expected = [(0.3 * like(answers[1], references[1]) + 0.5 * like(answers[1], saved[0])) / 0.8]
    for i in (2, 3, 4):
        to_saved, to_mean = like(answers[i], saved[i - 1]), like(answers[i], mean[i - 2])
        expected.append(0.3 * like(answers[i], references[i]) + 0.5 * to_saved + 0.2 * to_mean)
    values = cosine_of("cumulative", Cosine(reference=0.3, saved=0.5, running=0.2, model=model))
    assert values == pytest.approx(expected, abs=1e-5)
    assert np.std(values) > 0.01, "a model that finds all texts alike would prove nothing"


def test_the_long_term_strategy_leaves_the_first_topic_and_comes_back(
    model: str, direct: Direct
) -> None:
    values = cosine_of("long_term", Cosine(reference=0.3, saved=0.7, running=0.2, model=model))
    opening, second = (
        direct.unit("my dog is called rex rex is my dog"),
        direct.unit("what is the name of my dog rex"),
    )
    third = direct.unit("she lives in oslo in oslo")
    change = 0.3 * like(direct.unit("rex"), direct.unit("max is the name")) + 0.7 * (
        1 - like(direct.unit("rex"), opening)
    )
    answer = direct.unit("the name")
    back = 0.3 * like(answer, direct.unit("of york")) + 0.7 * like(answer, opening)
    assert values[0] == pytest.approx(change, abs=1e-5)
    assert values[3] == pytest.approx(
        (back + 0.2 * (1 - like(answer, 0.8 * third + 0.2 * second))) / 1.2, abs=1e-5
    )


def test_an_episode_scores_alone_as_beside_others_and_an_empty_answer_is_like_nothing(
    model: str,
) -> None:
    section = Cosine(model=model)
    silent = (TURNS[0], turn("what is the name of my dog", "", "rex"))
    assert cosine_of("single", section, silent) == [0.0]
    mix = RewardMix(bleu=None, cosine=section, length=None, recall=None)
    rewards = Rewards(single=mix, cumulative=mix, long_term=mix)
    episodes = [Episode(str(i), "t", 0, TURNS[i:] + TURNS[:i], 0) for i in range(5)]
    together = score_episodes(episodes, rewards, np.eye(16, dtype=np.float32), range(8))
    for one in together:
        assert [turn.rewards["cosine"] for turn in one.answered] == pytest.approx(
            cosine_of("cumulative", section, one.turns), abs=1e-6
        )


def test_a_text_that_is_none_fails_its_turn_alone(model: str) -> None:
    section, broken = Cosine(model=model, running=0), turn("what is oslo", None, "of york")  # type: ignore[arg-type]
    mix = RewardMix(bleu=None, cosine=section, length=None, recall=None)
    rewards = Rewards(single=mix, cumulative=mix, long_term=mix)
    (scored,) = score_episodes(
        [Episode("e", "t", 0, (*TURNS, broken), 0)], rewards, np.eye(16, dtype=np.float32), range(8)
    )
    assert str(scored.turns[-1].failure).startswith("cosine: AttributeError")
    assert all(
        turn.reward is not None and math.isfinite(turn.reward) for turn in scored.answered[:-1]
    )


def test_a_model_that_cannot_be_opened_is_refused_by_its_key(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rewards(name: str) -> Rewards:
        return Rewards(first_turn=RewardMix(cosine=Cosine(model=name)))

    require_rewards(rewards(model))
    require_rewards(Rewards())
    with pytest.raises(
        InputError,
        match=r"rewards\.first_turn\.cosine\.model: /no/such/folder: there is no such folder",
    ):
        require_rewards(rewards("/no/such/folder"))
    with pytest.raises(
        InputError,
        match=r"rewards\.first_turn\.cosine\.model: .*: is no model that sentence-transformers "
        r"opens",
    ):
        require_rewards(rewards(str(tmp_path)))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        InputError,
        match=r"first_turn\.cosine\.model: .*: needs the package .*'engram-rl\[sentence\]'",
    ):
        require_rewards(rewards(model))
