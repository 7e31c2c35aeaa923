"""An answer as a reader sees it come, token by token."""

from __future__ import annotations

from collections.abc import Callable, Generator

from rollout.policies.stopping import StopStrings
from rollout.protocols import Event


def streamed(
    step: Callable[[list[int]], tuple[int, bool]],
    text_of: Callable[[list[int]], str],
    stops: StopStrings,
    thought_of: Callable[[list[int], bool], str | None] = lambda answer, ends: None,
) -> Generator[Event, None, tuple[list[int], str]]:
    """An event for each token of an answer, and one for its thought; returns its ids and its text.

    step: the next token after those that the answer has, and whether it is the last one. text_of:
    the text of tokens, without a thought. thought_of: the thought, once it is over; given whether
    no more tokens come.
    """
    answer: list[int] = []
    shown, text, ends, told = "", "", False, False
    while not ends:
        token, ends = step(answer)
        answer.append(token)
        ends = ends or (bool(stops) and stops.reached(answer))
        thought = None if told else thought_of(answer, ends)
        if thought is not None:
            yield Event("thought", thought)
            told = True
        text = stops.cut(text_of(answer))
        # A character of several bytes is not shown before its last byte is there.
        visible = text if ends else text[: len(text) - stops.begun(text)]
        if visible.startswith(shown) and (ends or not visible.endswith("\ufffd")):
            yield Event("token", visible[len(shown) :])
            shown = visible
        else:
            yield Event("token")
    return answer, text
