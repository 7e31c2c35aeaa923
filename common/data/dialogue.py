"""How a causal language model sees a conversation: the texts around a query, and which of the
earlier interactions stand before it.

A context is `start`, then each remembered interaction with `separator` after it, then the prompt;
all of it as token ids. Whoever plays an episode and whoever trains on it build contexts by the same
functions from the same ids, so nothing is decoded and encoded again between two turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from common.episode import Episode, Memory
from common.failures import DataFailure

KIND = "interactions"
"""`Memory.kind` of remembered interactions: JSON lists of ids, oldest first."""

Interactions = tuple[tuple[int, ...], ...]
"""Ids of remembered interactions, query and answer each, oldest first."""


@dataclass(frozen=True, slots=True)
class DialogueFormat:
    """Texts may name special tokens of the tokenizer."""

    start: str
    """At the beginning of every context."""
    before: str
    """Before a query."""
    after: str
    """After a query; the answer comes next."""
    separator: str
    """Between two interactions."""
    answer_space: str
    """Between `after` and the text of an answer, where the tokenizer adds no space by itself."""
    end: str
    """Token that ends an answer."""
    interactions: int
    """Interactions that are remembered."""
    memory_tokens: int
    """Tokens that these may have together, separators included."""
    max_tokens: int
    """Longest sequence of the model: context and answer."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        return cls(**record)


@dataclass(frozen=True, slots=True)
class Window:
    """The last interactions within a budget of tokens. start, separator, end: ids."""

    start: tuple[int, ...]
    separator: tuple[int, ...]
    end: int
    """Ends an answer."""
    interactions: int
    memory_tokens: int
    max_tokens: int

    def remember(self, held: Interactions, interaction: Sequence[int]) -> Interactions:
        """The interactions held after one more. An empty one, of an episode that nothing was
        told before, is not held."""
        if not interaction:
            return held
        kept = (*held, tuple(interaction))[-self.interactions :] if self.interactions else ()
        while kept and self._tokens(kept) > self.memory_tokens:
            kept = kept[1:]
        return kept

    def _tokens(self, held: Interactions) -> int:
        return sum(len(each) + len(self.separator) for each in held)

    def context(self, held: Interactions, prompt: Sequence[int]) -> list[int]:
        """The ids before an answer. Of interactions that leave the answer less than an eighth of
        the sequence, the oldest are passed over. Raises DataFailure where the prompt alone leaves
        no room for an answer, or there is no token to begin with."""
        alone = len(self.start) + len(prompt)
        if alone >= self.max_tokens:
            raise DataFailure(
                f"a prompt of {alone} tokens leaves no room for an answer in a sequence of "
                f"{self.max_tokens}"
            )
        if not alone:
            raise DataFailure("a prompt without tokens gives the model nothing to go on from")
        room = self.max_tokens - self.max_tokens // 8
        while held and alone + self._tokens(held) > room:
            held = held[1:]
        told = [token for each in held for token in (*each, *self.separator)]
        return [*self.start, *told, *prompt]

    def contexts(self, episode: Episode) -> list[list[int]]:
        """The context of each answered turn, and of the prompt that would have come next where the
        episode was cut off. Raises DataFailure as `context`."""
        first = () if episode.initial_memory is None else unpacked(episode.initial_memory)
        held = self.remember(first, episode.turns[0].remembered_ids)
        found = []
        for turn in episode.answered:
            found.append(self.context(held, turn.query_ids))
            held = self.remember(held, turn.remembered_ids)
        if episode.truncated:
            found.append(self.context(held, episode.next_query_ids))
        return found


def packed(held: Interactions) -> Memory:
    """Remembered interactions as tasks and episodes hold them."""
    return Memory(KIND, json.dumps(held, separators=(",", ":")).encode())


def unpacked(memory: Memory) -> Interactions:
    """Inverse of `packed`. Raises DataFailure where it is another policy's memory."""
    if memory.kind != KIND:
        raise DataFailure(f"a memory of kind {memory.kind!r} holds no interactions as tokens")
    return tuple(tuple(each) for each in json.loads(memory.data))


def memory_hash(memory: Memory) -> str:
    return hashlib.blake2b(memory.data, digest_size=16).hexdigest()
