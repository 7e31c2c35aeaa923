"""Every reward component, by its key in a mix. A new component is a file in this folder and a line
here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from common.config.components import Component
from common.config.rewards import RewardMix, Rewards
from reward_service.components import (
    bleu,
    cosine,
    endpoint,
    environment,
    exact_match,
    format,
    function,
    leak,
    length,
    model,
    recall,
    repetition,
    thought,
    thought_length,
)
from reward_service.components.component import RewardComponent

TABLE: Mapping[str, RewardComponent[Any]] = {
    "bleu": bleu.BLEU,
    "cosine": cosine.COSINE,
    "length": length.LENGTH,
    "recall": recall.RECALL,
    "leak": leak.LEAK,
    "repetition": repetition.REPETITION,
    "format": format.FORMAT,
    "exact_match": exact_match.EXACT_MATCH,
    "thought": thought.THOUGHT,
    "thought_length": thought_length.THOUGHT_LENGTH,
    "environment": environment.ENVIRONMENT,
    "functions": function.FUNCTION,
    "endpoints": endpoint.ENDPOINT,
    "models": model.MODEL,
}
_BY_SECTION = {component.section: component for component in TABLE.values()}


class Part(NamedTuple):
    """A component of a mix."""

    name: str
    """In episodes and metrics."""
    component: RewardComponent[Any]
    section: Component


def component_of(section: Component) -> RewardComponent[Any]:
    return _BY_SECTION[type(section)]


def parts(mix: RewardMix) -> list[Part]:
    """The components of a mix, in the order in which they are added up."""
    return [Part(name, component_of(each), each) for name, each in mix.components().items()]


def keyed_parts(rewards: Rewards) -> Iterator[tuple[str, Part]]:
    """Every component of every mix, with the key of the mix."""
    for key, mix in rewards.mixes().items():
        yield from ((key, part) for part in parts(mix))


def range_of(name: str) -> tuple[float, float] | None:
    """The range of the component that stands under this name in episodes; None where it is not
    known."""
    return TABLE[name].range if name in TABLE else None
