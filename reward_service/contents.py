"""Hashes of what rewards read beside their settings: the files of functions, the weights of
models."""

from __future__ import annotations

from common.config.locations import split_pin
from common.config.rewards import Rewards
from reward_service.components.table import keyed_parts


def contents(rewards: Rewards) -> dict[str, list[str]]:
    """[path, hash of what lies there] of each component that reads any, by mix and component, such
    as "cumulative.politeness"."""
    found = {}
    for key, (name, component, section) in keyed_parts(rewards):
        source, path = component.source, component.reads(section)
        if source is not None and path is not None and (digest := source.digest(path)):
            # Without its pin: a model that changed is told of by the path that stayed.
            found[f"{key}.{name}"] = [split_pin(path)[0], digest]
    return found
