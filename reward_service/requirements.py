"""What rewards need, checked before anything starts: functions, models and packages that are not there stop a run at the door."""

from __future__ import annotations

from common.config.rewards import RewardMix, Rewards
from common.failures import InputError
from reward_service.custom import load_function
from reward_service.sentences import open_sentence_model


def require_rewards(rewards: Rewards) -> None:
    """Raises InputError naming the first path or key that cannot be used."""
    for mix in rewards.mixes():
        for function in mix.functions:
            load_function(function.path)
        for model in mix.models:
            # Here and not at the top, as below: it brings torch, which a service without reward models does without.
            from reward_service.model_rewards import require_model

            require_model(model)
    require_sentence_models(rewards)


def has_models(rewards: Rewards) -> bool:
    """Whether a worker has models to open before it can score."""
    return any(mix.models or (mix.cosine is not None and mix.cosine.model is not None) for mix in rewards.mixes())


def open_models(rewards: Rewards) -> None:
    """Open them all, so that no scoring call has to. Raises InputError where one cannot be."""
    for mix in rewards.mixes():
        if mix.cosine is not None and mix.cosine.model is not None:
            open_sentence_model(mix.cosine.model)
        for model in mix.models:
            from reward_service.model_rewards import open_model

            open_model(model.path, model.serve)


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
