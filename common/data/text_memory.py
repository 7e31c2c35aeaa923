"""A memory that is a text, which a causal policy writes anew after each interaction (the memory of
MemAgent; Yu et al. 2025, arXiv 2507.02259).

The policy reads its memory and the interaction, and writes the next memory within a budget of
tokens. The next query is answered from that text alone: no earlier interaction is in its context.
Between writing and reading the text stays token ids, so nothing is decoded and encoded again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.episode import Episode, Memory
from common.failures import DataFailure

TEXT_KIND = "text"
"""`Memory.kind` of a text memory: a JSON list of ids."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextMemoryFormat:
    """Texts may name special tokens of the tokenizer."""

    tokens: int
    """The most tokens that a memory may have, the one that ends it included."""
    read: tuple[str, str]
    """Texts before and after a memory that a query is answered from."""
    write: tuple[str, str, str, str]
    """Texts before the memory, between it and the query, between query and answer, and after the
    answer; the next memory comes then."""

    def __post_init__(self) -> None:
        # JSON has lists in place of tuples.
        object.__setattr__(self, "read", tuple(self.read))
        object.__setattr__(self, "write", tuple(self.write))


@dataclass(frozen=True, slots=True)
class TextMemory:
    """start, end, read, write: ids of the texts of the format. tokens: the budget of a memory."""

    start: Ids
    end: int
    tokens: int
    read: tuple[Ids, Ids]
    write: tuple[Ids, Ids, Ids, Ids]
    max_tokens: int

    @property
    def file_format(self) -> str:
        return "engram-text-memory-1"

    @property
    def written(self) -> bool:
        return True

    def write_prompt(self, held: Ids, query: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Raises DataFailure where less than the budget is left for the next memory: a shorter one
        would be cut through no fault of the policy."""
        before, between, asked, after = self.write
        prompt = [*self.start, *before, *held, *between, *query, *asked, *answer, *after]
        if len(prompt) + self.tokens > self.max_tokens:
            raise DataFailure(
                f"a prompt of {len(prompt)} tokens to write memory after (a memory of {len(held)}, "
                f"an interaction of {len(query) + len(answer)}) leaves no room for a memory of "
                f"{self.tokens} in a sequence of {self.max_tokens}"
            )
        return prompt

    def remember(self, held: Ids, ids: Sequence[int]) -> Ids:
        """The text that was written, without its end token."""
        return tuple(ids[:-1] if ids and ids[-1] == self.end else ids)

    def context(self, held: Ids, prompt: Sequence[int]) -> list[int]:
        before, after = self.read
        context = [*self.start, *before, *held, *after, *prompt]
        if len(context) >= self.max_tokens:
            raise DataFailure(
                f"a memory of {len(held)} tokens and a prompt of {len(prompt)} leave no room for "
                f"an answer in a sequence of {self.max_tokens}"
            )
        if not context:
            raise DataFailure("a prompt without tokens gives the model nothing to go on from")
        return context

    def contexts(self, episode: Episode) -> list[list[int]]:
        """Memories, and the prompts that they were written after, come from the episode."""
        memory = episode.initial_memory
        held: Ids = () if memory is None else self.unpacked(memory)
        written = {write.turn: write for write in episode.writes}
        thoughts = {thought.turn: thought for thought in episode.thoughts}
        found = []
        for action in episode.actions:
            if action.kind == "memory":
                found.append(list(written[action.turn].prompt_ids))
                held = self.remember(held, action.ids)
                continue
            context = self.context(held, episode.turns[action.turn].query_ids)
            thought = thoughts.get(action.turn)
            if thought is not None:
                context += thought.before_ids if action.kind == "thought" else thought.whole
            found.append(context)
        if episode.truncated:
            found.append(self.context(held, episode.next_query_ids))
        return found

    def room(self, context: Sequence[int], longest: int, writes: bool) -> int:
        return self.tokens if writes else min(longest, self.max_tokens - len(context))

    def packed(self, held: Ids) -> Memory:
        return Memory(TEXT_KIND, json.dumps(held, separators=(",", ":")).encode())

    def unpacked(self, memory: Memory) -> Ids:
        if memory.kind != TEXT_KIND:
            raise DataFailure(f"a memory of kind {memory.kind!r} is no text")
        return tuple(json.loads(memory.data))

    def describe(self, held: Ids, turn: int, decode: Callable[[Sequence[int]], str]) -> str:
        first = f"written after {turn} interactions, {len(held)} of at most {self.tokens} tokens:"
        return f"{first}\n{decode(held) or '(nothing)'}"

    def pieces(self, held: Ids) -> list[list[int]]:
        return [list(held)]

    def of_pieces(self, pieces: Sequence[Sequence[int]]) -> Ids:
        return tuple(token for piece in pieces for token in piece)
