"""Checks of what rewards read: functions, models and packages that are not there stop a run before
anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from common.config.components import Component
from common.config.rewards import Rewards
from common.episode import Row, Turn, TurnInContext
from reward_service.components.component import Source
from reward_service.components.table import keyed_parts


def require_rewards(rewards: Rewards, rows: Sequence[Row] = ()) -> None:
    """Raises InputError naming the first path or key that cannot be used.

    rows: the run's training data, for a turn to try functions on; without any they are only loaded.
    """
    for key, name, source, section in _sources(rewards):
        source.check(section, f"rewards.{key}.{name}", _sample(rows, key))


def require_tried(rewards: Rewards, rows: Sequence[Row]) -> None:
    """The same for components that can be tried on a turn of the data, functions, and no others."""
    for key, name, source, section in _sources(rewards):
        if source.tries:
            source.check(section, f"rewards.{key}.{name}", _sample(rows, key))


def has_to_open(rewards: Rewards) -> bool:
    """Whether a worker has functions to load or models to open before it can score."""
    return any(True for _ in _sources(rewards))


def open_all(rewards: Rewards) -> None:
    """Open them all, so that no scoring call has to. Raises InputError where a model cannot be."""
    for _, _, source, section in _sources(rewards):
        source.open(section)


def _sources(rewards: Rewards) -> Iterator[tuple[str, str, Source[Any], Component]]:
    """(key of the mix, component, source, settings) of each component that reads something beside
    its settings; equal ones of several mixes once."""
    seen: set[Component] = set()
    for key, (name, component, section) in keyed_parts(rewards):
        source = component.source
        if source is not None and source.path(section) is not None and section not in seen:
            seen.add(section)
            yield key, name, source, section


def _sample(rows: Sequence[Row], strategy: str) -> Turn | None:
    """A turn of the data: of a conversation of the strategy, where there is any."""
    asked = [row for row in rows if row.interactions]
    row = next((row for row in asked if row.strategy == strategy), asked[0] if asked else None)
    return sample_turn(row) if row is not None else None


def sample_turn(row: Row) -> TurnInContext:
    """The first turn of a conversation, answered as the data set has it. Its ids are made up: there
    may be no tokenizer yet."""
    asked = row.interactions[0]
    query_ids, answer_ids = (
        list(range(8, 8 + len(text.split()) + 1)) for text in (asked.query, asked.answer)
    )
    return TurnInContext(
        query_ids, answer_ids, [-1.0] * len(answer_ids), answer_ids, asked.role, asked.facts,
        query=asked.query, answer=asked.answer, reference=asked.answer,
        history=((row.query, row.answer),),
    )  # fmt: skip
