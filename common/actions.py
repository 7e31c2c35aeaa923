"""Everything that a policy generates in an episode, in order: answers, thoughts, memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from common.record import Record


@dataclass(frozen=True, slots=True)
class MemoryWrite(Record):
    """A memory that the policy wrote as text after a turn, for the turns that follow."""

    turn: int
    """Index of the turn after which it was written; 0 is the opening."""
    prompt_ids: Sequence[int]
    """All that it was written after: the memory before, the interaction, the texts around them."""
    ids: Sequence[int]
    """Generated tokens, with the end token where the policy ended by itself."""
    log_probs: Sequence[float]
    """Log-probability of each of them under the distribution it was sampled from."""
    unfiltered_log_probs: Sequence[float] = field(default_factory=list)
    """As in `Turn`."""
    text: str = ""
    cut: bool = False
    """Whether the budget of tokens ended it, and not the policy."""


@dataclass(frozen=True, slots=True)
class SeparateThought(Record):
    """A thought before an answer that is no part of the answer's ids, as a causal policy has it."""

    turn: int
    """Index of the turn that it belongs to."""
    before_ids: Sequence[int]
    """Ids that begin the thought, behind the prompt."""
    ids: Sequence[int]
    """Generated tokens, with the end of the thought where the policy ended it by itself."""
    log_probs: Sequence[float]
    """Log-probability of each of them under the distribution it was sampled from."""
    after_ids: Sequence[int]
    """The end that was put behind it where the policy did not end it; else empty."""
    unfiltered_log_probs: Sequence[float] = field(default_factory=list)
    """As in `Turn`."""

    @property
    def cut(self) -> bool:
        """Whether the policy did not end it by itself."""
        return bool(self.after_ids)

    @property
    def whole(self) -> list[int]:
        """All that stands between a prompt and its answer."""
        return [*self.before_ids, *self.ids, *self.after_ids]


class Action(NamedTuple):
    """Tokens that a policy generated in one go: a thought, an answer, or what it wrote to its
    memory."""

    turn: int
    """Index of the turn that it answered or thought for, or after which it wrote."""
    kind: Literal["thought", "answer", "memory"]
    ids: Sequence[int]
    log_probs: Sequence[float]
    reward: float | None
    """That of the turn. Thoughts and memories earn nothing by themselves: 0 where an answer after
    them has a reward, and None where there is none to credit them with."""
    reward_std: float = 0.0

    @property
    def answers(self) -> bool:
        return self.kind == "answer"
