"""Rewards by reward models. The models themselves are in `reward_service/reward_models/`, which
brings torch: it is imported only where a mix names a model."""

from __future__ import annotations

from collections.abc import Sequence

from common.config.components import ModelReward
from common.episode import Turn
from reward_service.comparison import Compared
from reward_service.components.component import Outcome, RewardComponent, Source


def _score(section: ModelReward, compared: Compared) -> Sequence[Outcome]:
    from reward_service.reward_models.serving import model_rewards

    return model_rewards(section, compared.conversations)


def _check(section: ModelReward, _key: str, _sample: Turn | None) -> None:
    from reward_service.reward_models.serving import require_model

    require_model(section)


def _open(section: ModelReward) -> None:
    from reward_service.reward_models.serving import open_model

    open_model(section.path, section.serve)


def pin_model(path: str) -> str:
    """See `reward_models.versions.pin_model`."""
    from reward_service.reward_models import versions

    return versions.pin_model(path)


def weights_digest(path: str) -> str:
    """See `reward_models.versions.weights_digest`."""
    from reward_service.reward_models import versions

    return versions.weights_digest(path)


MODEL = RewardComponent(
    ModelReward,
    _score,
    range=None,
    by_turn=True,
    source=Source("path", weights_digest, _check, _open, pin=pin_model),
)
