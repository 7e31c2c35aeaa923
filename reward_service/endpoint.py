"""Rewards by an HTTP endpoint: a batch of turns goes out as JSON, a list of numbers comes back.

    POST {"turns": [{"query", "answer", "reference", "role", "facts": [{"value", "said_in", "outdated"}]}]}
    200  {"rewards": [number or null, …]}, in the same order; null where the reward does not apply

An endpoint that cannot be reached, breaks the connection, takes too long, or answers 408, 425, 429 or 5xx is away: it is asked
again in a moment, and then whoever waits for the batch is told to try later (`outages.py`). Anything else that it says and that is
no answer is a data failure of these turns.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from common.config.rewards import EndpointReward
from common.episode import Turn
from common.failures import Unavailable
from reward_service.custom import Outcome

PAUSES = (0.2, 0.6)
"""Seconds before a request is made again. So that one lost of a hundred does not cost the others; longer waits are not made here,
where they would hold a worker."""
ASK_LATER = (408, 425, 429)
"""Answers by which an endpoint, or a proxy before it, says that this is not the moment."""
LONGEST_PAUSE = 30.0
"""Seconds: an endpoint that asks to be left alone for longer is asked after so long."""
LARGEST_ANSWER = 2**24


def endpoint_rewards(section: EndpointReward, turns: Sequence[Turn]) -> list[Outcome]:
    """The outcome of each turn, in order, in requests of `section.batch` turns. Raises Unavailable."""
    outcomes: list[Outcome] = []
    for start in range(0, len(turns), section.batch):
        outcomes += _insist(section, turns[start : start + section.batch])
    return outcomes


def _insist(section: EndpointReward, turns: Sequence[Turn]) -> list[Outcome]:
    for pause in PAUSES:
        try:
            return _ask(section, turns)
        except Unavailable as away:
            # One that was waited for once already has had its time.
            if isinstance(away.__cause__, TimeoutError) or away.pause > PAUSES[-1]:
                raise
            time.sleep(max(away.pause, pause * random.uniform(0.5, 1.0)))
    return _ask(section, turns)


def _ask(section: EndpointReward, turns: Sequence[Turn]) -> list[Outcome]:
    body = json.dumps({"turns": [_record(turn) for turn in turns]}).encode()
    request = urllib.request.Request(section.url, body, {"Content-Type": "application/json"}, method="POST")
    until = time.monotonic() + section.deadline
    try:
        with urllib.request.urlopen(request, timeout=section.deadline) as response:
            content = _content(response, until)
    except urllib.error.HTTPError as refusal:
        with refusal:
            said = f"it answered {refusal.code} {refusal.reason}"
            if refusal.code in ASK_LATER or refusal.code >= 500:
                raise _away(section, said, _retry_after(refusal.headers)) from refusal
            return [said] * len(turns)
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, OSError) else error
        raise _away(section, _why(cause, section)) from cause
    except (OSError, http.client.HTTPException) as error:
        raise _away(section, _why(error, section)) from error
    return _read(content, len(turns))


def _content(response: http.client.HTTPResponse, until: float) -> bytes:
    """The whole answer. Piece by piece: the socket's own timeout is for each piece."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(2**16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > until:
            raise TimeoutError
        if size > LARGEST_ANSWER:
            break
    content = b"".join(parts)
    if response.length or (response.length is None and not response.chunked and not _is_json(content)):
        # Without a length, nothing else tells an answer that was broken off, in its head even, from a whole one.
        raise http.client.IncompleteRead(content, response.length)
    return content


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _away(section: EndpointReward, why: str, pause: float = 0.0) -> Unavailable:
    return Unavailable(section.described, why, section.patience, pause)


def _why(error: Exception, section: EndpointReward) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {section.deadline:g} s"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {str(error).strip()[:200]}"


def _retry_after(headers: Message) -> float:
    """Seconds that the endpoint asks to be left alone, within reason; 0 where it says nothing that can be read."""
    said = (headers.get("Retry-After") or "").strip()
    try:
        seconds = float(said) if said.isdecimal() else parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def _read(content: bytes, count: int) -> list[Outcome]:
    try:
        rewards = json.loads(content)["rewards"]
        if not isinstance(rewards, list) or len(rewards) != count:
            raise ValueError(f"{len(rewards)} rewards for {count} turns")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return [f"it gave no rewards: {type(error).__name__}: {error}"] * count
    return [_outcome(reward) for reward in rewards]


def _outcome(reward: Any) -> Outcome:
    if reward is None:
        return None
    try:
        value = float(reward)
    except (ValueError, TypeError, OverflowError) as error:
        return f"it gave {str(reward)[:100]!r}: {type(error).__name__}"
    return value if math.isfinite(value) else f"the value is {value}"


def _record(turn: Turn) -> dict[str, object]:
    facts = [asdict(fact) for fact in turn.facts]
    return {"query": turn.query, "answer": turn.answer, "reference": turn.reference, "role": turn.role, "facts": facts}
