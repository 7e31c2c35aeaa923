"""Examples of a text memory for supervised fine-tuning: what to write after each turn, and what to
answer from it. A policy that nobody has taught writes nothing useful, so reinforcement has nothing
to choose from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from common.data.causal_tokenizer import CausalTokenizer
from common.data.conversations import value_counts
from common.data.reference_memory import ReferenceMemories
from common.data.text_memory import TextMemoryFormat
from common.episode import Row
from common.failures import DataFailure, InputError

log = logging.getLogger(__name__)


class Example(NamedTuple):
    """ids: prompt and what is learnt after it, which begins at `start`."""

    ids: list[int]
    start: int


def memory_examples(rows: Sequence[Row], tokenizer: CausalTokenizer) -> list[Example]:
    """For each turn of each conversation the memory to write, and for each follow-up the answer
    from the memory before it. The last turn's memory is not written: nobody reads it.

    Of statements that do not fit the budget the oldest are left out, and a warning counts how
    often. Raises InputError where a conversation does not fit the model.
    """
    text = tokenizer.dialogue.text_memory
    assert text is not None, "the policy of this stage writes its memory"
    references = ReferenceMemories(list(value_counts(rows)))
    examples: list[Example] = []
    shortened = 0
    for number, row in enumerate(rows, start=1):
        held: tuple[int, ...] = ()
        memories = references.of(row)
        try:
            for turn, (interaction, memory) in enumerate(zip(row.turns, memories, strict=True)):
                if turn:
                    prompt = tokenizer.prompt(interaction.query)
                    context = tokenizer.memory.context(held, prompt)
                    examples.append(_example(context, tokenizer.answer(interaction.answer)))
                if turn < len(row.interactions):
                    prompt = tokenizer.write_prompt(held, interaction.query, interaction.answer)
                    written, left_out = within_budget(memory, tokenizer, text)
                    shortened += left_out > 0
                    examples.append(_example(prompt, written))
                    held = tokenizer.memory.remember(held, written)
        except DataFailure as misfit:
            raise InputError(f"data.train, row {number}", str(misfit)) from misfit
    if shortened:
        log.warning(
            "%d of %d memories to learn are longer than %d tokens: their oldest statements are "
            "left out (model.causal.text_memory.tokens)",
            shortened,
            sum(len(row.interactions) for row in rows),
            text.tokens,
        )
    return examples


def within_budget(
    memory: str, tokenizer: CausalTokenizer, text: TextMemoryFormat
) -> tuple[list[int], int]:
    """A memory as ids, with its end token, and how many of its first lines were left out."""
    lines = memory.splitlines()
    for left_out in range(len(lines) + 1):
        written = tokenizer.written("\n".join(lines[left_out:]))
        if len(written) <= text.tokens:
            return written, left_out
    raise AssertionError("an end token alone fits any budget")


def _example(prompt: Sequence[int], learnt: Sequence[int]) -> Example:
    return Example([*prompt, *learnt], len(prompt))
