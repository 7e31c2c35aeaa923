"""The eight special tokens, whose ids never change, and where an answer begins among the ids of a
turn (thoughts of whole turns: common/data/thoughts.py).

Apart from the tokenizer, which brings `transformers`: a reward worker without models does without.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def spoken_ids(prompt: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Prompt and answer as if no thought had been asked for: what memory is written with. An answer
    whose thought never ends is empty, and has no end token."""
    if not thinks(prompt):
        return [*prompt, *ids]
    return [*prompt[:-1], ANSWER, *ids[answer_start(prompt, ids) :]]


def forced(prompt: Sequence[int], ids: Sequence[int], log_probs: Sequence[float]) -> list[bool]:
    """Where a token of an answer was not the policy's choice: the [A] that its budget put after a
    thought. It was certain, so its recorded log-probability is 0. One that the policy was certain
    of has no gradient either."""
    if not thinks(prompt) or ANSWER not in ids:
        return [False] * len(ids)
    place = list(ids).index(ANSWER)
    return [k == place and log_prob == 0 for k, log_prob in enumerate(log_probs)]
