"""What an endpoint says, what is made of it, and who is asked again."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import ValidationError

from common.config.components import EndpointReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Fact, TurnInContext
from common.failures import InfraFailure, Unavailable
from reward_service.components.endpoint import LONGEST_PAUSE, PAUSES, endpoint_rewards
from tests.endpoints import Answer, Endpoint, Raw
from tests.ports import free_ports

Serve = Callable[[Answer], str]
Say = Callable[..., Raw]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as started:

        def start(answer: Answer) -> str:
            return started.enter_context(contextlib.closing(Endpoint(answer))).url

        yield start


@pytest.fixture
def say() -> Iterator[Say]:
    with contextlib.ExitStack() as started:
        yield lambda *pieces, **how: started.enter_context(contextlib.closing(Raw(*pieces, **how)))


def turns(*answers: str) -> list[TurnInContext]:
    ids: dict[str, Any] = {
        "query_ids": [2],
        "answer_ids": [3],
        "log_probs": [-1.0],
        "reference_ids": [3],
    }
    return [
        TurnInContext(**ids, query=f"query {i}", answer=answer, reference="yes")
        for i, answer in enumerate(answers)
    ]


def outcomes(url: str, **settings: Any) -> list[Any]:
    return endpoint_rewards(
        EndpointReward(**{"name": "judge", "url": url, "deadline": 5, **settings}), turns("a", "b")
    )


def answered(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_an_endpoint_scores_in_batches(serve: Serve) -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        asked.append(request)
        return 200, {
            "rewards": [
                None if turn["answer"] == "" else len(turn["answer"]) for turn in request["turns"]
            ]
        }

    section = EndpointReward(name="judge", url=serve(answer), batch=2)
    told = TurnInContext(
        [2],
        [3],
        [0.0],
        [3],
        query="q",
        answer="abcd",
        reference="r",
        role="recall",
        facts=(Fact("Rex", 0, ("Bo",)),),
        history=(("hello", "hi"), ("my dog is Rex", "nice")),
    )
    assert endpoint_rewards(section, [*turns("ab", ""), told]) == [2.0, None, 4.0]
    assert [len(request["turns"]) for request in asked] == [2, 1]
    assert asked[1]["turns"] == [
        {
            "history": [
                {"query": "hello", "answer": "hi"}, {"query": "my dog is Rex", "answer": "nice"}
            ],
            "query": "q", "answer": "abcd", "reference": "r", "role": "recall",
            "facts": [{"value": "Rex", "said_in": 0, "outdated": ["Bo"]}],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (422, {}, "it answered 422"),
        (404, {"rewards": [1, 2]}, "it answered 404"),
        (200, {"rewards": [1]}, "1 rewards for 2 turns"),
        (200, {"scores": [1, 2]}, "KeyError"),
        (200, {"rewards": "12"}, "2 rewards for 2 turns"),
        (200, [1, 2], "TypeError"),
        (200, {"rewards": {"a": 1, "b": 2}}, "2 rewards for 2 turns"),
    ],
)
def test_an_answer_that_is_none_is_the_failure_of_its_turns(
    serve: Serve, status: int, content: Any, said: str
) -> None:
    first, second = outcomes(serve(lambda _: (status, content)))
    assert said in first
    assert said in second


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("inf"), "is inf"), ("high", "'high'"), ([1], "TypeError"), (10**400, "OverflowError")],
)
def test_a_value_that_is_none_is_the_failure_of_its_own_turn(
    serve: Serve, value: Any, said: str
) -> None:
    first, second = outcomes(serve(lambda _: (200, {"rewards": [value, 0.5]})))
    assert said in first
    assert second == 0.5


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
BROKEN = {
    "closes without a word": [b""],
    "closes within the head": [b"HTTP/1.1 200 OK\r\nContent-Le"],
    "closes within the body": [answered("200 OK", b'{"rewards": [1, 2]}')[:-3]],
    "closes within a chunk": [CHUNKED + b"\r\n\r\n30\r\n{\"rewards\""],
    "closes between chunks": [CHUNKED + b"\r\n\r\n4\r\n{\"re\r\n"],
    "speaks no HTTP": [b"\x15\x03\x01\x00\x02\x02\x50"],
    "gives a length that is none": [b"HTTP/1.1 20 0\r\nContent-Length: many\r\n\r\n"],
    "408": [answered("408 Request Timeout")],
    "425": [answered("425 Too Early")],
    "429": [answered("429 Too Many Requests")],
    "502": [answered("502 Bad Gateway")],
    "504": [answered("504 Gateway Timeout", b"oops")],
    "529": [answered("529 Overloaded")],
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_an_endpoint_that_breaks_off_is_away_once_it_was_asked_again(say: Say, how: str) -> None:
    raw = say(*BROKEN[how])
    with pytest.raises(
        Unavailable,
        match=r"^reward endpoint judge at http://127\.0\.0\.1:\d+ does not answer \(.+\)$",
    ):
        outcomes(raw.url)
    assert raw.connections == 1 + len(PAUSES)


def test_an_endpoint_that_is_not_there_or_keeps_silent_is_away(say: Say) -> None:
    (port,) = free_ports(1)
    with pytest.raises(InfraFailure, match=r"does not answer \(Connection refused\)"):
        outcomes(f"http://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="does not answer"):
        outcomes("http://no-such-host.invalid/")
    silent = say(b"", pause=30)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"\(nothing within 0\.5 s\)"):
        outcomes(silent.url, deadline=0.5)
    assert silent.connections == 1, "one that takes its deadline was waited for already"
    # A piece in time, and another one in time, is no answer in time.
    slow = say(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", *[b" "] * 900, pause=0.1)
    with pytest.raises(Unavailable, match=r"\(nothing within 0\.5 s\)"):
        outcomes(slow.url, deadline=0.5)
    assert time.monotonic() - began < 20


def test_one_lost_request_costs_nothing(serve: Serve) -> None:
    asked = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        asked.append(len(request["turns"]))
        return (503, {}) if len(asked) % 2 else (200, {"rewards": [1] * len(request["turns"])})

    section = EndpointReward(name="judge", url=serve(answer), batch=1)
    assert endpoint_rewards(section, turns(*"abc")) == [1.0] * 3
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("said", "pause"),
    [
        ("7", 7),
        ("86400", LONGEST_PAUSE),
        (format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), LONGEST_PAUSE),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0),
        ("soon", 0),
        ("-5", 0),
    ],
    # The same in every process, which the dates are not.
    ids=["seconds", "too many seconds", "tomorrow", "yesterday", "no number", "negative"],
)
def test_an_endpoint_may_say_when_to_come_back_within_reason(
    say: Say, said: str, pause: float
) -> None:
    raw = say(answered("503 Service Unavailable", b"", f"Retry-After: {said}"))
    with pytest.raises(Unavailable) as away:
        outcomes(raw.url, patience=9)
    assert (away.value.pause, away.value.patience) == (pause, 9)
    assert raw.connections == (1 if pause else 1 + len(PAUSES)), (
        "who is told to come back later is not to wait here"
    )
    again = pickle.loads(pickle.dumps(away.value))
    assert (str(again), again.pause) == (str(away.value), pause)


def test_a_url_that_nobody_can_be_asked_at_is_refused() -> None:
    for url in (
        "http://",
        "http://host:port/",
        "http://host:0/",
        "http://a b/",
        "https://user:secret@host/",
        "http://höst/",
        "ftp://x/",
    ):
        with pytest.raises(ValidationError):
            EndpointReward(name="e", url=url)
    assert "secret" not in EndpointReward(name="e", url="https://host/score?key=secret").described


def test_a_deadline_that_the_call_does_not_leave_is_refused() -> None:
    endpoint = EndpointReward(name="judge", url="http://host/", deadline=60)
    with pytest.raises(
        ValidationError,
        match=r"reward endpoint judge at http://host/ has a deadline of 60 s, and `rewards\.",
    ):
        Rewards(cumulative=RewardMix(endpoints=(endpoint,)), deadline=60)
