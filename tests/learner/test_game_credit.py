"""Credit across the steps of a game whose values are known: a corridor, by the environment's own
rewards and a critic that was written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config.algorithms import PPO
from common.episode import Episode, Turn
from learner.parallel.group import OneRank
from learner.rl.algorithms.ppo import ProximalPolicyOptimization
from learner.rl.experience import Experience, gather_experience
from learner.rl.rewards import shaped_rewards

ROOMS, DISCOUNT = 4, 0.6
WORDS = {"go": 1, "east": 2, "look": 3, "fly": 4, "away": 5}
FIRST_ROOM = 10
"""The id of the prompt in the first room."""


def move(room: int, command: str) -> tuple[int, float, bool]:
    """The room after a command, what it pays, and whether the game is won: a point for each room,
    two more for the last, half a point off for what nobody can do."""
    if command == "go east":
        won = room + 1 == ROOMS
        return room + 1, 1.0 + 2.0 * won, won
    return room, -0.5 if command == "fly away" else 0.0, False


def value(room: int) -> float:
    """Of going east all the way."""
    if room == ROOMS:
        return 0.0
    after, paid, _ = move(room, "go east")
    return paid + DISCOUNT * value(after)


def advantage(room: int, command: str) -> float:
    after, paid, _ = move(room, command)
    return paid + DISCOUNT * value(after) - value(room)


class WrittenCritic:
    """The value of a room before the first word of a command, that of the command before each
    further one."""

    module = nn.Module()
    loss_in_policy = 0.0

    def __init__(self, per_token: bool) -> None:
        self._per_token = per_token

    def memories(self, episodes: Sequence[Episode]) -> None:
        return None

    def evaluate(self, episodes: Sequence[Episode], memories: Any = None) -> Tensor:
        found = []
        for turn in (turn for episode in episodes for turn in episode.answered):
            room = turn.query_ids[0] - FIRST_ROOM
            chosen = value(room) + advantage(room, turn.answer)
            found.append(value(room))
            found += [chosen] * (len(turn.answer_ids) - 1) if self._per_token else []
        return torch.tensor(found)

    def beyond(self, episodes: Sequence[Episode], memories: Any = None) -> Tensor:
        return torch.tensor([value(each.next_query_ids[0] - FIRST_ROOM) for each in episodes])


def played(commands: Sequence[str]) -> tuple[Episode, list[int]]:
    """An episode, cut off where it was not won, and the rooms that its commands were given in."""
    room, turns, rooms, won = 0, [Turn([], [], [], [])], [], False
    for command in commands:
        rooms.append(room)
        ids = [WORDS[word] for word in command.split()]
        asked = [FIRST_ROOM + room]
        room, paid, won = move(room, command)
        turns.append(Turn(asked, ids, [-1.0] * len(ids), [], answer=command, reward=paid))
    episode = Episode("e", "t", 0, tuple(turns), 0, status="scored")
    return (episode if won else replace(episode, next_query_ids=[FIRST_ROOM + room])), rooms


def credited(commands: Sequence[str], **section: Any) -> tuple[Experience, list[int]]:
    settings = PPO(discount=DISCOUNT, whiten=False, kl=0.0, **section)
    episode, rooms = played(commands)
    per_token = settings.credits_tokens
    lived = gather_experience(
        [episode], None, WrittenCritic(per_token), 1.0, torch.device("cpu"), per_token
    )
    lived = shaped_rewards(lived, settings, 0.0, lambda _: True, OneRank())
    return ProximalPolicyOptimization(settings).credit(lived, [0], OneRank()), rooms


PATHS = [
    ["go east"] * 4,
    ["go east", "look", "go east", "fly away", "go east", "go east"],
    ["look", "go east", "go east"],  # cut off: the value of the third room stands for the rest
    ["fly away"],
]
CREDITS = ["answer", "answer_mean", "token"]


@pytest.mark.parametrize("commands", PATHS, ids=lambda path: str(len(path)))
def test_a_command_is_credited_with_what_it_is_worth_beyond_the_room(commands: list[str]) -> None:
    """With λ = 0. On the way nothing is better than expected, whatever is still to come."""
    lived, rooms = credited(commands, credit="answer", gae_lambda=0.0)
    expected = [advantage(*each) for each in zip(rooms, commands, strict=True)]
    assert lived.advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert [abs(a) < 1e-6 for a in expected] == [command == "go east" for command in commands]


@pytest.mark.parametrize("commands", PATHS, ids=lambda path: str(len(path)))
def test_the_word_that_decides_is_credited_and_the_rest_is_expected(commands: list[str]) -> None:
    """The critic knows the command after its first word; nothing is due to the others, and nothing
    goes on to the command before."""
    lived, rooms = credited(commands, credit="token", gae_lambda=0.0)
    assert lived.tokens is not None
    for k, (room, command) in enumerate(zip(rooms, commands, strict=True)):
        first, *others = lived.tokens.advantages[0, k, : len(command.split())].tolist()
        assert first == pytest.approx(advantage(room, command), abs=1e-6)
        assert others == pytest.approx([0.0] * len(others), abs=1e-6)


@pytest.mark.parametrize("commands", PATHS, ids=lambda path: str(len(path)))
def test_one_advantage_per_command_is_against_the_mean_of_its_values(commands: list[str]) -> None:
    lived, rooms = credited(commands, credit="answer_mean", gae_lambda=0.0)
    assert lived.tokens is not None
    worth = []
    for room, command in zip(rooms, commands, strict=True):
        others = len(command.split()) - 1
        chosen = value(room) + advantage(room, command)
        worth.append((value(room) + others * chosen) / (1 + others))
    end, _, won = move(rooms[-1], commands[-1])
    worth.append(0.0 if won else value(end))
    for k, (room, command) in enumerate(zip(rooms, commands, strict=True)):
        paid = move(room, command)[1]
        expected = paid + DISCOUNT * worth[k + 1] - worth[k]
        found = lived.tokens.advantages[0, k, : len(command.split())].tolist()
        assert found == pytest.approx([expected] * len(found), abs=1e-6)


@pytest.mark.parametrize("credit", CREDITS)
def test_a_game_that_is_cut_off_is_worth_as_much_as_one_that_goes_on(credit: str) -> None:
    """With a 0 in place of the value, being cut off would teach that the third room is bad."""
    whole, _ = credited(["go east"] * 4, credit=credit)
    cut, _ = credited(["go east"] * 2, credit=credit)
    assert cut.returns[0].tolist() == pytest.approx(whole.returns[0, :2].tolist(), abs=1e-6)
    assert float(cut.returns[0, 0]) == pytest.approx(value(0), abs=1e-6)
