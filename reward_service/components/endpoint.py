"""Rewards by an HTTP endpoint: a batch of turns goes out as JSON, a list of numbers comes back.

    POST {"turns": [{"history": [{"query", "answer"}, …], "query", "answer", "reference", "role",
         "facts": [{"value", "said_in", "outdated"}]}]}
    200  {"rewards": [number or null, …]}, in the same order; null where the reward does not apply

docs/rewards.md describes the fields.

An endpoint that cannot be reached, breaks the connection, takes too long, or answers 408, 425, 429,
502, 503 or 504 is away: it is asked again in a moment, and then whoever waits for the batch is told
to try later (`outages.py`). Another 5xx may be due to what was asked, and so may those three where
the endpoint answers other turns meanwhile: the request is divided, and a turn that is refused alone
fails, if a turn that was answered before is answered between its tries. Anything else that the
endpoint says and that is no answer is a data failure of these turns.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from common.config.components import EndpointReward
from common.episode import TurnInContext
from common.failures import Unavailable
from reward_service.comparison import Compared
from reward_service.components.component import Outcome, RewardComponent

PAUSES = (0.2, 0.6)
"""Seconds before a request is made again. So that one lost of a hundred does not cost the others;
longer waits are not made here, where they would hold a worker."""
ASK_LATER = (408, 425, 429)
"""Answers by which an endpoint, or a proxy before it, says that this is not the moment."""
ON_THE_WAY = (502, 503, 504, *range(520, 600))
"""Answers of a proxy, or of a service that starts or has too much to do: as a rule not about what
was asked."""
LONGEST_PAUSE = 30.0
"""Seconds: an endpoint that asks to be left alone for longer is asked after so long."""
LARGEST_ANSWER = 2**24

_answered: dict[str, TurnInContext] = {}
"""By URL: the turn that was answered last. Where it is answered again, the endpoint is not away."""


def endpoint_rewards(section: EndpointReward, turns: Sequence[TurnInContext]) -> list[Outcome]:
    """The outcome of each turn, in order, in requests of `section.batch` turns. Raises
    Unavailable."""
    outcomes: list[Outcome] = []
    for start in range(0, len(turns), section.batch):
        outcomes += _insist(section, turns[start : start + section.batch])
    return outcomes


def _insist(section: EndpointReward, turns: Sequence[TurnInContext]) -> list[Outcome]:
    for pause in PAUSES:
        try:
            return _ask(section, turns)
        except Unavailable as away:
            # One that was waited for once already has had its time.
            if isinstance(away.__cause__, TimeoutError) or away.pause > PAUSES[-1]:
                raise
            time.sleep(max(away.pause, pause * random.uniform(0.5, 1.0)))
    try:
        return _ask(section, turns)
    except Unavailable as away:
        if away.of_batch or (_is_refusal(away) and _answers_another(section)):
            return _divided(section, turns, away)
        raise


def _divided(
    section: EndpointReward, turns: Sequence[TurnInContext], failing: Unavailable
) -> list[Outcome]:
    """The outcomes of turns that were refused together: halves are asked, and their halves, until
    each turn at fault stands alone.

    Raises Unavailable: where the endpoint is away by now, or, with `of_batch`, where time is up or
    nothing is known that it answers.
    """
    until = time.monotonic() + section.deadline
    outcomes: dict[int, Outcome] = {}

    def ask(asked: Sequence[int]) -> Unavailable | None:
        """Why these are refused; None where they are not, and have their outcomes."""
        try:
            outcomes.update(zip(asked, _ask(section, [turns[i] for i in asked]), strict=True))
        except Unavailable as away:
            if not _is_refusal(away):
                raise
            if time.monotonic() > until:
                raise _of_batch(away) from away
            return away
        return None

    parts: deque[Sequence[int]] = deque([range(len(turns))])
    alone: dict[int, Unavailable] = {}
    while parts:
        part = parts.popleft()
        if len(part) == 1:
            alone[part[0]] = failing
            continue
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            if (refusal := ask(half)) is not None:
                failing = refusal
                parts.append(half)
    for pause in PAUSES:
        if not alone:
            break
        time.sleep(pause * random.uniform(0.5, 1.0))
        # Between two tries of theirs, or an outage that ends or begins just now would be taken for
        # their fault.
        if section.url in _answered and not _answers_another(section):
            raise _away(section, failing.why)
        alone = {i: refusal for i in alone if (refusal := ask([i])) is not None}
    if alone and section.url not in _answered:
        raise _of_batch(failing) from failing
    return [alone[i].why if i in alone else outcomes[i] for i in range(len(turns))]


def _answers_another(section: EndpointReward) -> bool:
    """Whether it answers now what it has answered before."""
    known = _answered.get(section.url)
    try:
        return known is not None and bool(_ask(section, [known]))
    except Unavailable:
        return False


def _is_refusal(away: Unavailable) -> bool:
    """Whether it was a 5xx, which may be about what was asked. One that asks to be left alone says
    what it is about."""
    cause = away.__cause__
    return isinstance(cause, urllib.error.HTTPError) and cause.code >= 500 and not away.pause


def _of_batch(away: Unavailable) -> Unavailable:
    return Unavailable(away.what, away.why, away.patience, of_batch=True)


def _ask(section: EndpointReward, turns: Sequence[TurnInContext]) -> list[Outcome]:
    body = json.dumps({"turns": [_record(turn) for turn in turns]}).encode()
    request = urllib.request.Request(
        section.url, body, {"Content-Type": "application/json"}, method="POST"
    )
    until = time.monotonic() + section.deadline
    try:
        with urllib.request.urlopen(request, timeout=section.deadline) as response:
            content = _content(response, until)
    except urllib.error.HTTPError as refusal:
        with refusal:
            said = f"it answered {refusal.code} {refusal.reason}"
            if refusal.code in ASK_LATER or refusal.code >= 500:
                pause = _retry_after(refusal.headers)
                away = _away(section, said, pause)
                raise (
                    _of_batch(away)
                    if refusal.code not in (*ASK_LATER, *ON_THE_WAY) and not pause
                    else away
                ) from refusal
            return [said] * len(turns)
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, OSError) else error
        raise _away(section, _why(cause, section)) from cause
    except (OSError, http.client.HTTPException) as error:
        raise _away(section, _why(error, section)) from error
    outcomes = _read(content, len(turns))
    for turn, outcome in zip(turns, outcomes, strict=True):
        if not isinstance(outcome, str):
            _answered[section.url] = turn
            break
    return outcomes


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
    if response.length or (
        response.length is None and not response.chunked and not _is_json(content)
    ):
        # Without a length, nothing else tells an answer that was broken off, in its head even, from
        # a whole one.
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
    """Seconds that the endpoint asks to be left alone, within reason; 0 where it says nothing that
    can be read."""
    said = (headers.get("Retry-After") or "").strip()
    try:
        seconds = (
            float(said)
            if said.isdecimal()
            else parsedate_to_datetime(said).timestamp() - time.time()
        )
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


def _record(turn: TurnInContext) -> dict[str, object]:
    facts = [asdict(fact) for fact in turn.facts]
    return {
        "history": [{"query": query, "answer": answer} for query, answer in turn.history],
        "query": turn.query,
        "answer": turn.answer,
        "reference": turn.reference,
        "role": turn.role,
        "facts": facts,
    }


def _score(section: EndpointReward, compared: Compared) -> list[Outcome]:
    return endpoint_rewards(section, compared.in_context)


ENDPOINT = RewardComponent(EndpointReward, _score, range=None, by_turn=True)
