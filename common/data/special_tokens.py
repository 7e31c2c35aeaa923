"""The eight special tokens, whose ids never change, and where an answer begins among the ids of a
turn.

Apart from the tokenizer, which brings `transformers`: a reward worker without models does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.episode import Turn

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]", "[Q]", "[A]", "[T]")
PAD, UNK, BOS, EOS, MASK, QUERY, ANSWER, THINK = range(len(SPECIAL_TOKENS))


def thinks(prompt: Sequence[int]) -> bool:
    """Whether a prompt asks for a thought before the answer: it ends with [T] in place of [A]. In
    the vocabulary of a causal language model these ids are other tokens; its prompts do not have
    the template's beginning."""
    return list(prompt[:2]) == [BOS, QUERY] and prompt[-1] == THINK


def answer_start(prompt: Sequence[int], ids: Sequence[int]) -> int:
    """Where the answer begins in what follows a prompt: after the [A] that ends a thought, where
    the prompt asks for one. A thought that never reaches [A] has an empty answer, which begins at
    the end."""
    if not thinks(prompt):
        return 0
    return list(ids).index(ANSWER) + 1 if ANSWER in ids else len(ids)


def spoken(turn: Turn) -> Turn:
    """The turn as if there had been no thoughts, in answer and reference: what is said, and all
    that rewards look at. A turn without a thought comes back as it is."""
    if not thinks(turn.query_ids):
        return turn
    start = answer_start(turn.query_ids, turn.answer_ids)
    reached = start < len(turn.answer_ids)
    return replace(
        turn,
        query_ids=[*turn.query_ids[:-1], ANSWER],
        answer_ids=turn.answer_ids[start:],
        log_probs=turn.log_probs[start:],
        unfiltered_log_probs=turn.unfiltered_log_probs[start:],
        reference_ids=turn.reference_ids[answer_start(turn.query_ids, turn.reference_ids) :],
        answer=turn.answer if reached else "",
    )


def thoughts(turn: Turn) -> tuple[Sequence[int], Sequence[int]]:
    """Ids of the thought in the answer and of the one in the reference, [A] left out; empty where
    the prompt asks for none."""
    if not thinks(turn.query_ids):
        return (), ()
    cut = (
        ids[: ids.index(ANSWER)] if ANSWER in ids else ids
        for ids in (list(turn.answer_ids), list(turn.reference_ids))
    )
    answer, reference = cut
    return answer, reference
