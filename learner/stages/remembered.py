"""Conversations as examples for supervised fine-tuning of a causal policy: what to answer after
what it remembers and, where its memory is text, what to write. A policy that nobody has taught
writes nothing useful, so reinforcement has nothing to choose from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from common.data.causal_tokenizer import CausalTokenizer
from common.data.conversations import value_counts
from common.data.dialogue import Held
from common.data.reference_memory import ReferenceMemories
from common.episode import Interaction, Row
from common.failures import DataFailure, InputError

log = logging.getLogger(__name__)


class Example(NamedTuple):
    """ids: prompt and what is learnt after it, which begins at `start`."""

    ids: list[int]
    start: int


def conversation_examples(rows: Sequence[Row], tokenizer: CausalTokenizer) -> list[Example]:
    """For each follow-up of each conversation its answer, after what is remembered then; where the
    policy writes its memory, for each turn that another follows the memory to write.

    Of statements that do not fit the budget of a memory the oldest are left out, and a warning
    counts how often. Raises InputError where a conversation does not fit the model.
    """
    remember = _Writing(rows, tokenizer) if tokenizer.memory.written else _Keeping(tokenizer)
    examples: list[Example] = []
    for number, row in enumerate(rows, start=1):
        try:
            examples += _of_row(row, tokenizer, remember)
        except DataFailure as misfit:
            raise InputError(f"data.train, row {number}", str(misfit)) from misfit
    remember.tell()
    return examples


def _of_row(row: Row, tokenizer: CausalTokenizer, remember: _Keeping | _Writing) -> list[Example]:
    held: Held = ()
    found = []
    remember.begin(row)
    for index, turn in enumerate(row.turns):
        if index:
            context = tokenizer.memory.context(held, tokenizer.prompt(turn.query))
            found.append(answer_example(context, turn, tokenizer))
        if index < len(row.interactions):
            held, written = remember.after(held, index, turn)
            found += written
    return found


def answer_example(context: list[int], turn: Interaction, tokenizer: CausalTokenizer) -> Example:
    """The answer of an interaction after a context, and before it its thought, where the data have
    one and the policy thinks."""
    learnt = tokenizer.answer(turn.answer)
    if turn.think is None or not tokenizer.thinks:
        return _example(context, learnt)
    return _example([*context, *tokenizer.think_open], [*tokenizer.thought(turn.think), *learnt])


class _Keeping:
    """Interactions are remembered as they are, and nothing is written."""

    def __init__(self, tokenizer: CausalTokenizer):
        self._tokenizer = tokenizer

    def begin(self, row: Row) -> None: ...

    def after(self, held: Held, index: int, turn: Interaction) -> tuple[Held, list[Example]]:
        ids = self._tokenizer.interaction(turn)
        return self._tokenizer.memory.remember(held, ids), []

    def tell(self) -> None: ...


class _Writing:
    """Teaches what to write after each turn of the row that was begun last."""

    def __init__(self, rows: Sequence[Row], tokenizer: CausalTokenizer):
        self._tokenizer = tokenizer
        self._references = ReferenceMemories(list(value_counts(rows)))
        self._memories: list[str] = []
        self._shortened, self._count = 0, 0

    def begin(self, row: Row) -> None:
        self._memories = self._references.of(row)

    def after(self, held: Held, index: int, turn: Interaction) -> tuple[Held, list[Example]]:
        prompt = self._tokenizer.write_prompt(held, turn.query, turn.answer)
        written, left_out = within_budget(self._memories[index], self._tokenizer)
        self._shortened += left_out > 0
        self._count += 1
        held = self._tokenizer.memory.remember(held, written)
        return held, [_example(prompt, written)]

    def tell(self) -> None:
        if self._shortened:
            log.warning(
                "%d of %d memories to learn are longer than model.causal.text_memory.tokens: their "
                "oldest statements are left out",
                self._shortened,
                self._count,
            )


def within_budget(memory: str, tokenizer: CausalTokenizer) -> tuple[list[int], int]:
    """A memory as ids, with its end token, and how many of its first lines were left out."""
    text = tokenizer.dialogue.text_memory
    assert text is not None, "a policy that writes its memory has a budget for it"
    lines = memory.splitlines()
    for left_out in range(len(lines) + 1):
        written = tokenizer.written("\n".join(lines[left_out:]))
        if len(written) <= text.tokens:
            return written, left_out
    raise AssertionError("an end token alone fits any budget")


def _example(prompt: Sequence[int], learnt: Sequence[int]) -> Example:
    return Example([*prompt, *learnt], len(prompt))
