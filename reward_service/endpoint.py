"""Rewards by an HTTP endpoint: a batch of turns goes out as JSON, a list of numbers comes back.

    POST {"turns": [{"query", "answer", "reference", "role", "facts": [{"value", "said_in", "outdated"}]}]}
    200  {"rewards": [number or null, …]}, in the same order; null where the reward does not apply

An endpoint that cannot be reached, takes too long or answers 5xx is an infra failure: the batch is tried again. What it says that is no
answer is a data failure of these turns.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict

from common.config.rewards import EndpointReward
from common.episode import Turn
from common.failures import DeadlineExceeded, InfraFailure
from reward_service.custom import Outcome


def endpoint_rewards(section: EndpointReward, turns: Sequence[Turn]) -> list[Outcome]:
    """The outcome of each turn, in order, in requests of `section.batch` turns. Raises InfraFailure."""
    outcomes: list[Outcome] = []
    for start in range(0, len(turns), section.batch):
        outcomes += _ask(section, turns[start : start + section.batch])
    return outcomes


def _ask(section: EndpointReward, turns: Sequence[Turn]) -> list[Outcome]:
    body = json.dumps({"turns": [_record(turn) for turn in turns]}).encode()
    request = urllib.request.Request(section.url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=section.deadline) as response:
            content = response.read()
    except urllib.error.HTTPError as refusal:
        if refusal.code >= 500:
            raise InfraFailure(f"{section.name}: {section.url} answered {refusal.code} {refusal.reason}") from refusal
        return [f"{section.url} answered {refusal.code} {refusal.reason}"] * len(turns)
    except TimeoutError as late:
        raise DeadlineExceeded(f"{section.name}: {section.url}", section.deadline) from late
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise DeadlineExceeded(f"{section.name}: {section.url}", section.deadline) from error
        raise InfraFailure(f"{section.name}: {section.url} cannot be reached: {error.reason}") from error
    return _read(section, content, len(turns))


def _read(section: EndpointReward, content: bytes, count: int) -> list[Outcome]:
    try:
        rewards = json.loads(content)["rewards"]
        if len(rewards) != count:
            raise ValueError(f"{len(rewards)} rewards for {count} turns")
        values = [None if reward is None else float(reward) for reward in rewards]
    except (ValueError, TypeError, KeyError) as error:
        return [f"{section.url} gave no rewards: {type(error).__name__}: {error}"] * count
    return [value if value is None or math.isfinite(value) else f"the value is {value}" for value in values]


def _record(turn: Turn) -> dict[str, object]:
    facts = [asdict(fact) for fact in turn.facts]
    return {"query": turn.query, "answer": turn.answer, "reference": turn.reference, "role": turn.role, "facts": facts}
