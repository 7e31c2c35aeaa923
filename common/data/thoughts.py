"""Turns without the thoughts that stand before [A], and the thoughts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.data.special_tokens import ANSWER, answer_start, thinks
from common.episode import Turn


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
