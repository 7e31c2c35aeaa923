"""What rewards are computed with beside their settings: the files of functions, the weights of
models."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.config.rewards import Component, Cosine, FunctionReward, ModelReward, RewardMix, Rewards
from reward_service.components.function import source_file


def contents(rewards: Rewards) -> dict[str, list[str]]:
    """[path, hash of what lies there] of each component that reads any, by mix and component, such
    as "cumulative.politeness"."""
    found = {}
    for key, mix in rewards:
        for name, component in mix.components().items() if isinstance(mix, RewardMix) else ():
            path, digest = _content(component)
            if digest is not None:
                found[f"{key}.{name}"] = [path, digest]
    return found


def _content(component: Component) -> tuple[str, str | None]:
    if isinstance(component, FunctionReward):
        file = source_file(component.path)
        return component.path, hashlib.blake2b(
            Path(file).read_bytes(), digest_size=8
        ).hexdigest() if file else None
    model = (
        component.path
        if isinstance(component, ModelReward)
        else component.model
        if isinstance(component, Cosine)
        else None
    )
    if model is None:
        return "", None
    # Here and not at the top: it brings torch, which rewards without models do without.
    from reward_service.reward_models.serving import weights_digest

    return model, weights_digest(model)
