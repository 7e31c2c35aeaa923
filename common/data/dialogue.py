"""How a causal language model sees a conversation: the texts around a query, and what it remembers
of the earlier interactions.

There are two ways (`DialogueMemory`): the last interactions as they were (`Window`), or a text that
it writes itself (common/data/text_memory.py). Whoever plays an episode and whoever trains on it
build contexts by the same functions from the same ids, so nothing is decoded and encoded again
between two turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from common.data.text_memory import TextMemoryFormat
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
    text_memory: TextMemoryFormat | None = None
    """How the policy writes and reads a text of its own; None: it remembers interactions."""
    think: tuple[str, str] | None = None
    """Texts before and after a thought; None: the policy has none."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        text = record.get("text_memory")
        think = record.get("think")
        own = {"text_memory": text and TextMemoryFormat(**text), "think": think and tuple(think)}
        return cls(**record | own)


Held = tuple[Any, ...]
"""Content of a memory at one moment, as hashable values. Only a memory of the same class reads
it."""


class DialogueMemory(Protocol):
    """The way in which a causal policy remembers a conversation. All are functions of what is held:
    a memory keeps nothing itself."""

    @property
    def start(self) -> tuple[int, ...]:
        """Ids at the beginning of every context."""
        ...

    @property
    def end(self) -> int:
        """Id of the token that ends what the policy generates."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest sequence of the model."""
        ...

    @property
    def file_format(self) -> str:
        """Names files that hold such a memory."""
        ...

    @property
    def written(self) -> bool:
        """Whether the policy generates it. False: it holds the interactions' own ids."""
        ...

    def write_prompt(self, held: Held, query: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The ids after which the policy writes its memory anew, once it has answered; of a memory
        that is written alone. Raises DataFailure where they do not fit the model. query, answer:
        their texts as ids."""
        ...

    def remember(self, held: Held, ids: Sequence[int]) -> Held:
        """The memory after an interaction. ids: what the policy wrote after `write_prompt`, or the
        interaction's own."""
        ...

    def context(self, held: Held, prompt: Sequence[int]) -> list[int]:
        """The ids before an answer. Raises DataFailure where they leave it no room."""
        ...

    def contexts(self, episode: Episode) -> list[list[int]]:
        """The ids before each action of an episode (`Episode.actions`), and before the answer to
        the prompt that would have come next where it was cut off."""
        ...

    def room(self, context: Sequence[int], longest: int, writes: bool) -> int:
        """The most tokens that may be generated after a context. longest: of an answer."""
        ...

    def packed(self, held: Held) -> Memory:
        """As tasks and episodes hold it."""
        ...

    def unpacked(self, memory: Memory) -> Held:
        """Inverse of `packed`. Raises DataFailure where it is another policy's memory."""
        ...

    def pieces(self, held: Held) -> list[list[int]]:
        """The content as lists of ids, for a file."""
        ...

    def describe(self, held: Held, turn: int, decode: Callable[[Sequence[int]], str]) -> str:
        """The content in words. turn: interactions of the conversation so far."""
        ...

    def of_pieces(self, pieces: Sequence[Sequence[int]]) -> Held:
        """Inverse of `pieces`."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """The last interactions within a budget of tokens. start, separator, end: ids.

    A context is `start`, then each remembered interaction with `separator` after it, then the
    prompt.
    """

    start: tuple[int, ...]
    separator: tuple[int, ...]
    end: int
    """Ends an answer."""
    interactions: int
    memory_tokens: int
    max_tokens: int

    @property
    def file_format(self) -> str:
        return "engram-interactions-1"

    @property
    def written(self) -> bool:
        return False

    def write_prompt(
        self, held: Interactions, query: Sequence[int], answer: Sequence[int]
    ) -> list[int]:
        raise NotImplementedError("interactions are remembered as they are")

    def remember(self, held: Interactions, ids: Sequence[int]) -> Interactions:
        """The interactions held after one more. An empty one, of an episode that nothing was
        told before, is not held."""
        if not ids:
            return held
        kept = (*held, tuple(ids))[-self.interactions :] if self.interactions else ()
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
        memory = episode.initial_memory
        held = self.remember(
            () if memory is None else self.unpacked(memory), episode.turns[0].remembered_ids
        )
        found = []
        for index, turn in enumerate(episode.answered, start=1):
            context = self.context(held, turn.query_ids)
            found += around_thought(episode, index, context)
            held = self.remember(held, turn.remembered_ids)
        if episode.truncated:
            found.append(self.context(held, episode.next_query_ids))
        return found

    def room(self, context: Sequence[int], longest: int, writes: bool) -> int:
        return min(longest, self.max_tokens - len(context))

    def packed(self, held: Interactions) -> Memory:
        return Memory(KIND, json.dumps(held, separators=(",", ":")).encode())

    def unpacked(self, memory: Memory) -> Interactions:
        if memory.kind != KIND:
            raise DataFailure(f"a memory of kind {memory.kind!r} holds no interactions as tokens")
        return self.of_pieces(json.loads(memory.data))

    def describe(
        self, held: Interactions, turn: int, decode: Callable[[Sequence[int]], str]
    ) -> str:
        tokens = sum(map(len, held))
        return (
            f"the last {len(held)} of {turn} interactions, {tokens} tokens\n"
            f"at most {self.interactions} interactions and {self.memory_tokens} tokens are held"
        )

    def pieces(self, held: Interactions) -> list[list[int]]:
        return [list(each) for each in held]

    def of_pieces(self, pieces: Sequence[Sequence[int]]) -> Interactions:
        return tuple(tuple(each) for each in pieces)


def around_thought(episode: Episode, turn: int, context: list[int]) -> list[list[int]]:
    """The ids before the thought of a turn, where it has one, and before its answer. context: those
    before either."""
    found = [[*context, *each.before_ids] for each in episode.thoughts if each.turn == turn]
    return [*found, [*context, *episode.thought_before(turn)]]


def memory_hash(memory: Memory) -> str:
    return hashlib.blake2b(memory.data, digest_size=16).hexdigest()
