"""A text classifier pays by the name of a label, and one whose labels do not say which is
refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from common.config.components import ModelReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Turn
from common.failures import InputError
from reward_service.compose import score_episodes
from reward_service.preflight import require_rewards
from reward_service.reward_models.model import from_folder
from reward_service.reward_models.serving import model_rewards
from tests.local_preferences import text_model

LABELS = ("calm", "angry", "sad")
SAID = ("gladly it is tea", "go away with rain", "noted snow", "shut up about milk")


def section(path: str, **settings: object) -> ModelReward:
    return ModelReward.model_validate({"name": "mood", "path": path, **settings})


def rewards(path: str, **settings: object) -> Rewards:
    mix = RewardMix(
        bleu=None, cosine=None, length=None, recall=None, models=(section(path, **settings),)
    )
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def episode(answer: str) -> Episode:
    turns = [
        Turn([2, 5, 6], [7, 3], [], [8, 3], query="what about tea", answer=text)
        for text in ("noted tea", answer)
    ]
    return Episode(answer, answer, 0, tuple(turns), 0)


def paid(path: str, **settings: object) -> np.ndarray:
    scored = score_episodes(
        [episode(answer) for answer in SAID],
        rewards(path, **settings),
        np.eye(4, dtype=np.float32),
        (),
    )
    assert all(turn.reward_std == 0 for one in scored for turn in one.answered)
    return np.array([one.turns[1].rewards["mood"] for one in scored])


def logits(path: str) -> torch.Tensor:
    """Of the same texts, by transformers alone."""
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    texts = [f"what about tea\nnoted tea\nwhat about tea\n{answer}" for answer in SAID]
    with torch.no_grad():
        return torch.cat(
            [
                model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits
                for text in texts
            ]
        ).double()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_model(tmp_path_factory.mktemp("mood"), "bert", labels=LABELS, initializer_range=0.3)


@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_read_by_its_name(classifier: str, label: str) -> None:
    raw, place = logits(classifier), LABELS.index(label)
    probability = raw.softmax(-1)[:, place].numpy()
    assert np.ptp(probability) > 0.01, "the answers are told apart"
    for unit in (True, False):
        assert paid(classifier, label=label, unit=unit) == pytest.approx(probability, abs=1e-5)
        assert paid(classifier, label=label, read="logit", unit=unit) == pytest.approx(
            raw[:, place].numpy(), abs=1e-5
        )
        odds = np.log(probability / (1 - probability))
        assert paid(classifier, label=label, read="log_odds", unit=unit) == pytest.approx(
            odds, abs=1e-4
        )


def test_labels_that_do_not_exclude_each_other_are_read_one_by_one(tmp_path: Path) -> None:
    path = text_model(
        tmp_path / "mood", "bert", labels=LABELS, problem_type="multi_label_classification"
    )
    own = logits(path)[:, 1]
    assert paid(path, label="angry") == pytest.approx(own.sigmoid().numpy(), abs=1e-5)
    assert paid(path, label="angry", read="log_odds") == pytest.approx(own.numpy(), abs=1e-5)


def test_the_order_of_the_labels_changes_nothing(tmp_path: Path) -> None:
    there, back = (
        text_model(tmp_path / name, "bert", labels=order)
        for name, order in (("a", LABELS), ("b", LABELS[::-1]))
    )
    model = AutoModelForSequenceClassification.from_pretrained(back)
    model.classifier.weight.data = model.classifier.weight.data.flip(0)
    model.classifier.bias.data = model.classifier.bias.data.flip(0)
    model.save_pretrained(back)
    assert paid(there, label="calm") == pytest.approx(paid(back, label="calm"), abs=1e-6)


def test_several_labels_without_a_label_are_refused_with_their_names(classifier: str) -> None:
    with pytest.raises(InputError, match=r"mood\.label: is missing.* 3 labels, calm, angry, sad"):
        require_rewards(rewards(classifier))
    with pytest.raises(InputError, match="calm, angry, sad"):
        model_rewards(section(classifier), [episode("noted tea").turns])


def test_a_label_that_is_not_there_is_refused_with_the_nearest(classifier: str) -> None:
    with pytest.raises(InputError, match="no label 'angri'; did you mean 'angry'"):
        require_rewards(rewards(classifier, label="angri"))
    with pytest.raises(InputError, match="valid are angry, calm, sad"):
        require_rewards(rewards(classifier, label="xyz"))
    require_rewards(rewards(classifier, label="angry"))


def test_labels_of_one_name_are_refused(tmp_path: Path) -> None:
    path = text_model(tmp_path / "mood", "bert", labels=("calm", "calm", "sad"))
    with pytest.raises(InputError, match="more than one label 'calm'"):
        require_rewards(rewards(path, label="calm"))
    require_rewards(rewards(path, label="sad"))


def test_scores_and_levels_have_no_label(tmp_path: Path) -> None:
    scalar, levels = (text_model(tmp_path / str(n), "bert", n) for n in (1, 4))
    for path in (scalar, levels):
        require_rewards(rewards(path))
        with pytest.raises(InputError, match="has no labels to choose from"):
            require_rewards(rewards(path, label="LABEL_0"))
    assert paid(scalar, unit=False) == pytest.approx(logits(scalar)[:, 0].numpy(), abs=1e-5)
    two = text_model(tmp_path / "2", "bert", labels=("no", "yes"))
    with pytest.raises(InputError, match="2 labels, no, yes"):
        require_rewards(rewards(two))


def test_a_discrete_reward_model_keeps_its_levels_where_it_is_saved(tmp_path: Path) -> None:
    backbone = text_model(tmp_path / "backbone", "bert", labels=LABELS, initializer_range=0.3)
    trained = from_folder("backbone", backbone, levels=3, training=True)
    folder = tmp_path / "trained"
    trained.module.save_pretrained(folder)
    trained.save_tokenizer(folder)
    require_rewards(rewards(str(folder)))


def test_read_without_a_label_is_refused() -> None:
    with pytest.raises(ValidationError, match="there is no label"):
        section("somewhere", read="logit")
