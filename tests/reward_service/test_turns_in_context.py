"""What a reward function or an endpoint sees of the conversation before the turn that it scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.components import EndpointReward, FunctionReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Interaction, Row, Turn
from reward_service.components.function import close_functions
from reward_service.compose import score_episodes
from reward_service.preflight import require_tried
from tests.endpoints import Endpoint

FUNCTION = """\
import json

def record(turn, into):
    with open(into, "a") as file:
        file.write(json.dumps([turn.query, [list(pair) for pair in turn.history]]) + "\\n")
    return len(turn.history)

def needs_an_opening(turn):
    return float(turn.history[-1][1] == "nice")
"""


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    close_functions()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    where = tmp_path / "mine.py"
    where.write_text(FUNCTION)
    return where


def turn(query: str, answer: str, reference: str = "r", **more: Any) -> Turn:
    return Turn(
        [2, 9],
        [10, 3],
        [-1.0] * 2,
        [10, 3],
        query=query,
        answer=answer,
        reference=reference,
        **more,
    )


def only(**components: Any) -> Rewards:
    mix = RewardMix(**{"bleu": None, "cosine": None, "length": None, "recall": None, **components})
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def episodes() -> list[Episode]:
    first = (
        turn("my dog is Rex", "nice", role="remember"),
        turn("and it rains", "written", "dry", teacher_forced=True),
        turn("what is my dog called?", "Rex"),
    )
    return [
        Episode("1", "a", 0, first, 0),
        Episode("2", "b", 0, (turn("hello", "hi", role="remember"), turn("bye", "ciao")), 0),
    ]


SEEN = [
    ["and it rains", [["my dog is Rex", "nice"]]],
    # Memory was written with the reference of the turn before: that is what the model could know.
    ["what is my dog called?", [["my dog is Rex", "nice"], ["and it rains", "dry"]]],
    ["bye", [["hello", "hi"]]],
]


def score(rewards: Rewards) -> list[list[float | None]]:
    scored = score_episodes(episodes(), rewards, np.ones((12, 4), np.float32), (2, 3))
    return [[turn.reward for turn in episode.answered] for episode in scored]


def test_a_function_sees_what_was_said_before_its_turn(file: Path, tmp_path: Path) -> None:
    into = tmp_path / "seen.jsonl"
    section = FunctionReward(
        name="record", path=f"{file}:record", weight=1, arguments={"into": str(into)}
    )
    assert score(only(functions=(section,))) == [[1, 2], [1]]
    assert [json.loads(line) for line in into.read_text().splitlines()] == SEEN


def test_an_endpoint_is_sent_what_was_said_before_each_turn() -> None:
    asked: list[Any] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        asked.extend(request["turns"])
        return 200, {"rewards": [len(turn["history"]) for turn in request["turns"]]}

    with closing(Endpoint(answer)) as endpoint:
        section = EndpointReward(name="judge", url=endpoint.url, weight=1)
        assert score(only(endpoints=(section,))) == [[1, 2], [1]]
    assert [
        [turn["query"], [[said["query"], said["answer"]] for said in turn["history"]]]
        for turn in asked
    ] == SEEN


def test_a_function_is_tried_on_a_turn_with_the_opening_before_it(file: Path) -> None:
    section = FunctionReward(name="f", path=f"{file}:needs_an_opening", weight=1)
    row = Row("my dog is Rex", "nice", (Interaction("what is my dog called?", "Rex"),))
    require_tried(only(functions=(section,)), [row])
