"""Calls of an actor outside a pool: one deadline, and whatever is raised has a type that says whose
fault it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from common.actors.ask import ask, fetch, find
from common.failures import DataFailure, DeadlineExceeded, InfraFailure, InputError, Unavailable

pytestmark = pytest.mark.usefixtures("ray_local")


@ray.remote(num_cpus=0)
class Actor:
    def answer(self, value: Any) -> Any:
        return value

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self, failure: Exception) -> None:
        raise failure

    def die(self) -> None:
        os._exit(1)


@pytest.fixture
def actor() -> Iterator[Any]:
    """An actor that has started, which takes long on a busy machine."""
    made = Actor.remote()
    assert ray.get(made.answer.remote(1), timeout=150) == 1
    yield made
    ray.kill(made)


def test_the_result_arrives_and_references_are_fetched_within_one_deadline(actor: Any) -> None:
    assert ask(actor, "answer", 7, deadline=60, reason="seven") == 7
    held = [ray.put("a"), ray.put("b")]
    assert fetch(held, deadline=60, reason="two letters") == ["a", "b"]
    late = [actor.sleep.remote(20), held[0]]
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"waited 0\.5 s for a nap"):
        fetch(late, deadline=0.5, reason="a nap")
    assert time.monotonic() - began < 10


def test_what_the_actor_raises_keeps_its_type_and_anything_else_is_a_data_failure(
    actor: Any,
) -> None:
    with pytest.raises(InputError, match="rewards: is wrong") as refused:
        ask(actor, "fail", InputError("rewards", "is wrong"), deadline=60, reason="the actor")
    assert (refused.value.where, refused.value.what) == ("rewards", "is wrong")
    with pytest.raises(Unavailable, match="the endpoint does not answer"):
        ask(actor, "fail", Unavailable("the endpoint", "dark", 1.0), deadline=60, reason="it")
    with pytest.raises(DataFailure, match="the actor to fail: KeyError: 'x'") as bug:
        ask(actor, "fail", KeyError("x"), deadline=60, reason="the actor to fail")
    assert "raise failure" in "".join(bug.value.__notes__), "the actor's traceback goes with it"


def test_a_dead_actor_and_one_that_never_was_are_infra_failures(actor: Any) -> None:
    with pytest.raises(InfraFailure, match="lost while waiting for the actor to die"):
        ask(actor, "die", deadline=60, reason="the actor to die")
    with pytest.raises(InfraFailure, match="waiting for another answer"):
        ask(actor, "answer", 1, deadline=60, reason="another answer")
    with pytest.raises(InfraFailure, match="there is no actor nobody"):
        find("nobody", "nowhere")


def test_the_caller_is_called_while_it_waits(actor: Any) -> None:
    calls: list[int] = []
    ask(actor, "sleep", 1.6, deadline=60, reason="a nap", on_wait=lambda: calls.append(1))
    assert len(calls) in (2, 3, 4)
    with pytest.raises(DeadlineExceeded):
        ask(actor, "sleep", 30, deadline=0.7, reason="a nap", on_wait=lambda: None)
