"""Reward models: opening one and scoring answers with it."""

from __future__ import annotations

from collections.abc import Sequence

from common.config.rewards import ModelReward
from common.episode import Turn
from reward_service.custom import ModelOutcome


def model_rewards(section: ModelReward, conversations: Sequence[Sequence[Turn]]) -> list[ModelOutcome]:
    """The outcome of the last turn of each conversation, given the turns before it."""
    raise NotImplementedError


def weights_digest(path: str) -> str:
    raise NotImplementedError
