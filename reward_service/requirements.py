"""What rewards need, checked before anything starts: functions, models and packages that are not there stop a run at the door."""

from __future__ import annotations

from common.config.rewards import RewardMix, Rewards
from common.failures import InputError
from reward_service.custom import load_function
from reward_service.model_rewards import require_model
from reward_service.sentences import open_sentence_model


def require_rewards(rewards: Rewards) -> None:
    """Raises InputError naming the first path or key that cannot be used."""
    for mix in rewards.mixes():
        for function in mix.functions:
            load_function(function.path)
        for model in mix.models:
            require_model(model)
    require_sentence_models(rewards)


def require_sentence_models(rewards: Rewards) -> None:
    opened = set()
    for key, mix in rewards:
        model = mix.cosine.model if isinstance(mix, RewardMix) and mix.cosine is not None else None
        if model is not None and model not in opened:
            try:
                open_sentence_model(model, device="cpu")
            except InputError as error:
                raise InputError(f"rewards.{key}.cosine.model", str(error)) from error
            opened.add(model)
