"""Conversations of a run as text: what was told and asked, what the model answered, and what each
answer earned.

What a reader looks for is chosen while the run's episodes are read one after the other; only the
chosen ones are kept.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any, get_args

from common.episode import Role
from common.failures import InputError, nearest
from common.storage.run_directory import RunDirectory
from common.text.counted import counted
from common.text.values import contains_value
from rollout.journal.conversations import Conversation, conversations

SHOWN = 5
"""How many conversations are shown where nobody says."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which conversations of a run to show. All conditions hold together."""

    worst: int | None = None
    """So many with the lowest mean reward, lowest first; None: the latest."""
    failed: bool = False
    """Only those that failed, or with a turn that did."""
    role: Role | None = None
    """Only those with a turn of this role; `worst` then looks at the rewards of these turns."""
    limit: int = SHOWN
    """How many of the latest."""

    def __post_init__(self) -> None:
        if self.role is not None and self.role not in get_args(Role):
            raise InputError(
                "--role", f"{self.role!r} is no role; {nearest(self.role, get_args(Role))}"
            )

    def admits(self, conversation: Conversation) -> bool:
        turns = conversation["turns"][1:]
        return (self.role is None or any(turn["role"] == self.role for turn in turns)) and (
            not self.failed or has_failed(conversation)
        )


def chosen(run: RunDirectory, choice: Choice) -> tuple[list[Conversation], int]:
    """The conversations of a run that `choice` names, facts marked as recalled or not, and how many
    the run has recorded.

    Raises InputError for a run without episodes, and for damaged files.
    """
    total = 0

    def admitted() -> Iterable[Conversation]:
        nonlocal total
        for conversation in conversations(run):
            total += 1
            if choice.admits(conversation):
                yield conversation

    if choice.worst is None:
        found = list(deque(admitted(), maxlen=choice.limit))
    else:
        found = _lowest(admitted(), choice.worst, lambda one: mean_reward(one, choice.role))
    if not total:
        raise InputError(
            run.path("episodes"),
            "holds no episodes yet: they are recorded by memory reinforcement learning",
        )
    return [_with_recall(conversation) for conversation in found], total


def mean_reward(conversation: Conversation, role: str | None = None) -> float | None:
    """Mean reward of the turns that have one; None where none has."""
    rewards = [
        turn["reward"]
        for turn in conversation["turns"][1:]
        if turn["reward"] is not None and role in (None, turn["role"])
    ]
    return sum(rewards) / len(rewards) if rewards else None


def has_failed(conversation: Conversation) -> bool:
    return conversation["status"] in ("failed", "unscored") or any(
        turn["failure"] for turn in conversation["turns"]
    )


def episodes_text(found: list[Conversation], total: int, choice: Choice) -> str:
    """The conversations for a reader."""
    what = " that failed" if choice.failed else ""
    what += f" with a turn of role {choice.role}" if choice.role else ""
    if not found:
        return f"none of {counted(total, 'episodes')}{what or ' has a reward'}"
    order = "lowest mean reward first" if choice.worst is not None else "latest last"
    those = f", of those{what}" if what else ""
    head = f"{len(found)} of {counted(total, 'episodes')}{those}, {order}"
    return "\n\n".join([head, *(_text(conversation, choice.role) for conversation in found)])


def _lowest(
    found: Iterable[Conversation], number: int, key: Callable[[Conversation], float | None]
) -> list[Conversation]:
    """The `number` conversations with the lowest key, lowest first; earlier ones first where equal.
    Those without a key are left out."""
    keyed = ((value, one) for one in found if (value := key(one)) is not None)
    numbers = count()
    ranked = ((value, next(numbers), one) for value, one in keyed)
    return [one for _, _, one in heapq.nsmallest(number, ranked)]


def _with_recall(conversation: Conversation) -> Conversation:
    """With `distance` and `recalled` for each fact that a turn asks for: turns since it was said,
    and whether the answer names it."""
    turns = [
        turn
        | {
            "facts": [
                fact
                | {
                    "distance": index - fact["said_in"],
                    "recalled": contains_value(turn["answer"], fact["value"]),
                }
                for fact in turn["facts"]
            ]
        }
        for index, turn in enumerate(conversation["turns"])
    ]
    return conversation | {"mean_reward": mean_reward(conversation), "turns": turns}


def _text(conversation: Conversation, role: str | None) -> str:
    opening, *answered = conversation["turns"]
    mean = mean_reward(conversation, role)
    of_role = f" of {role} turns" if role else ""
    reward = "" if mean is None else f", mean reward{of_role} {mean:.3f}"
    lines = [
        f"episode {conversation['id']}: stage {conversation['stage']}, step "
        f"{conversation['step'] or 'none'}, iteration {conversation['iteration']}, weights "
        f"{conversation['weights_version']}, {conversation['status']}{reward}"
    ]
    if opening["query"] or opening["answer"]:
        lines += [*_entry("told", opening["query"]), *_entry("", opening["answer"])]
    lines += _memory(opening)
    for index, turn in enumerate(answered, start=1):
        lines += [f"  {index} {turn['role']}", *_turn(turn)]
    return "\n".join(lines)


def _turn(turn: dict[str, Any]) -> list[str]:
    lines = [*_entry("asked", turn["query"])]
    if turn["thought"]:
        lines += _entry("thought", turn["thought"])
    lines += _entry("answered", turn["answer"])
    if turn["reference"] and turn["reference"] != turn["answer"]:
        lines += _entry("expected", turn["reference"])
    for fact in turn["facts"]:
        lines += _entry("fact", _fact(fact, turn["answer"]))
    if turn["reward"] is not None:
        parts = ", ".join(f"{name} {value:.3g}" for name, value in turn["rewards"].items())
        lines += _entry("reward", f"{turn['reward']:.3f}" + (f" ({parts})" if parts else ""))
    if turn["failure"]:
        lines += _entry("failed", turn["failure"])
    return lines + _memory(turn)


def _memory(turn: dict[str, Any]) -> list[str]:
    """The memory that the policy wrote after a turn, where it did."""
    if turn["memory"] is None:
        return []
    cut = ["(cut at the budget)"] if turn["memory"]["cut"] else []
    return _entry("memory", "\n".join([turn["memory"]["text"] or "(nothing)", *cut]))


def _fact(fact: dict[str, Any], answer: str) -> str:
    distance = fact["distance"]
    ago = f"{distance} turn{'' if distance == 1 else 's'} before"
    outdated = [value for value in fact["outdated"] if contains_value(answer, value)]
    instead = f"; the outdated {outdated[0]} instead" if outdated else ""
    recalled = "recalled" if fact["recalled"] else f"not recalled{instead}"
    return f"{fact['value']}, told {ago}: {recalled}"


def _entry(label: str, text: str) -> list[str]:
    """A labelled text; its further lines stand below its first."""
    first, *others = text.splitlines() or ["(nothing)"]
    return [f"    {label:9}{first}", *(f"    {'':9}{line}" for line in others)]
