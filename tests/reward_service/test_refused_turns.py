"""Turns on which an endpoint answers 5xx: told from an endpoint that is away, and alone in
failing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from common.config.components import EndpointReward
from common.episode import TurnInContext
from common.failures import Unavailable
from reward_service.components import endpoint
from reward_service.components.endpoint import PAUSES, endpoint_rewards
from tests.endpoints import Endpoint


class Refusing:
    """Answers `status` where one of the turns says "bad", and to request `since` and all that
    follow it up to `until`."""

    def __init__(self) -> None:
        self.status, self.seconds, self.asked = 500, 0.0, list[int]()
        self.since, self.until = 0, 0

    def outage(self, after: int = 0, requests: int = 10**6) -> None:
        self.since, self.until = len(self.asked) + after, len(self.asked) + after + requests

    def __call__(self, request: dict[str, Any]) -> tuple[int, Any]:
        number = len(self.asked)
        self.asked.append(len(request["turns"]))
        if self.since <= number < self.until or any(
            turn["answer"] == "bad" for turn in request["turns"]
        ):
            time.sleep(self.seconds)
            return self.status, {}
        return 200, {"rewards": [len(turn["answer"]) for turn in request["turns"]]}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PAUSES", (0.02, 0.05))


@pytest.fixture
def judge() -> Refusing:
    return Refusing()


@pytest.fixture
def url(judge: Refusing) -> Iterator[str]:
    with contextlib.closing(Endpoint(judge)) as server:
        yield server.url


def turns(*answers: str) -> list[TurnInContext]:
    return [
        TurnInContext([2], [3], [-1.0], [3], query=f"query {i}", answer=answer, reference="yes")
        for i, answer in enumerate(answers)
    ]


def outcomes(url: str, *answers: str, **settings: Any) -> list[Any]:
    return endpoint_rewards(
        EndpointReward(**{"name": "judge", "url": url, "deadline": 20, **settings}), turns(*answers)
    )


@pytest.mark.parametrize(
    ("status", "reason"),
    [(500, "Internal Server Error"), (501, "Not Implemented"), (502, "Bad Gateway")],
)
def test_turns_that_are_refused_whatever_their_company_are_alone_in_failing(
    judge: Refusing, url: str, status: int, reason: str
) -> None:
    judge.status, said = status, f"it answered {status} {reason}"
    assert outcomes(url, "fine") == [4.0]
    assert outcomes(url, "a", "bc", "bad", "a", "a", "bad", "cde", batch=5) == [
        1.0,
        2.0,
        said,
        1.0,
        1.0,
        said,
        3.0,
    ]
    assert outcomes(url, "bad") == [said]
    assert outcomes(url, "bad", "bad") == [said] * 2
    assert outcomes(url, "fine") == [4.0]


def test_a_turn_is_known_to_be_at_fault_by_those_of_its_own_request(url: str) -> None:
    assert outcomes(url, "bad", "bc", "bad") == [
        "it answered 500 Internal Server Error",
        2.0,
        "it answered 500 Internal Server Error",
    ]


def test_a_refusal_that_passes_costs_no_turn(judge: Refusing, url: str) -> None:
    judge.outage(requests=1 + len(PAUSES) + 2)
    assert outcomes(url, "a", "bc") == [1.0, 2.0]
    # All three tries, both halves, and each by itself once more.
    assert judge.asked == [2, 2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("status", [500, 503])
def test_an_outage_is_not_taken_for_the_fault_of_a_turn(
    judge: Refusing, url: str, status: int
) -> None:
    judge.status = status
    assert outcomes(url, "fine") == [4.0]
    judge.outage()
    with pytest.raises(
        Unavailable,
        match=rf"^reward endpoint judge at {url} does not answer \(it answered {status} ",
    ) as away:
        outcomes(url, "a", "bc")
    assert not away.value.of_batch
    # Nor where it begins while a turn at fault is looked for: after the three tries and the first
    # half.
    judge.outage(after=4)
    with pytest.raises(Unavailable, match="does not answer"):
        outcomes(url, "fine", "a", "bad", "bc")


def test_where_nothing_was_ever_answered_the_batch_is_handed_back_to_be_divided(
    judge: Refusing, url: str
) -> None:
    judge.outage()
    with pytest.raises(
        Unavailable, match=rf"^reward endpoint judge at {url} fails \(it answered 500 "
    ) as failing:
        outcomes(url, "a", "bc")
    assert failing.value.of_batch


def test_slow_refusals_do_not_take_the_whole_call(judge: Refusing, url: str) -> None:
    assert outcomes(url, "fine") == [4.0]
    judge.seconds = 0.3
    began = time.monotonic()
    with pytest.raises(Unavailable, match=" fails ") as failing:
        outcomes(url, *["bad"] * 64, deadline=1.5)
    assert failing.value.of_batch
    # Three tries, 1.5 s of halves, and the one on its way. One turn after another they would take
    # 57 s.
    assert time.monotonic() - began < 20
    assert len(judge.asked) < 15
