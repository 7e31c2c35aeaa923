"""Long conversations played in parts, so that what is held of them does not grow with their turns.

Memory is the whole state of a conversation: a part begins with the memory that the one before it
left (`Task.first_turn`), and its answers are those of the conversation played whole. Conversations
of at most WHOLE answers are one part.

Parts end at turns 16, 32, 64 and 128, and every 128 turns from there on. Rewards compare an answer
with turns of its own part, and with the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from common.episode import Episode, Interaction, Memory, Row, Task, Turn
from common.failures import DataFailure

Player = Callable[[list[Task]], list[Episode]]
"""Plays tasks with the weights under test; episodes in the order of tasks."""

WHOLE = 128
"""Answers of a part, at most."""
ENDS = (16, 32, 64)
"""Where the first parts of a longer conversation end, before WHOLE."""
TOGETHER = 64
"""Long conversations that are played at the same time."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some turns of a conversation as they were played."""

    conversation: int
    """Which of the conversations it belongs to."""
    episode: Episode
    """Its turn 0 is the one before the part's first."""
    first: int
    """The number of its first answered turn in the conversation."""
    told: Sequence[Interaction | Turn]
    """All turns of the conversation with the queries, roles and facts that they have in the
    data."""

    @property
    def answered(self) -> Iterator[tuple[int, Turn]]:
        """Each answered turn with its number in the conversation."""
        return enumerate(self.episode.answered, self.first)


def whole(episodes: Sequence[Episode]) -> Iterator[Part]:
    """Each episode as the only part of its conversation. Raises DataFailure naming one that was not
    played to its end."""
    for number, episode in enumerate(episodes):
        yield Part(number, _playable(episode), 1, episode.turns)


def played_parts(player: Player, tasks: Sequence[Task]) -> Iterator[Part]:
    """Plays conversations; those of more than WHOLE answers in parts, TOGETHER at a time.

    Parts of one conversation come in order. The last one has the final memory where the task asks
    for it. Raises DataFailure naming a conversation that could not be played to its end.
    """
    numbered = list(enumerate(tasks))
    short = [each for each in numbered if _answers(each[1]) <= WHOLE]
    whole_ones = player([task for _, task in short]) if short else []
    for (number, _), episode in zip(short, whole_ones, strict=True):
        yield Part(number, _playable(episode), 1, episode.turns)
    long = sorted(
        (each for each in numbered if _answers(each[1]) > WHOLE), key=lambda each: _answers(each[1])
    )
    for start in range(0, len(long), TOGETHER):
        yield from _together(player, long[start : start + TOGETHER])


def _together(player: Player, numbered: Sequence[tuple[int, Task]]) -> Iterator[Part]:
    """Long conversations, part by part."""
    told = {number: _row(task).turns for number, task in numbered}
    memory: dict[int, Memory | None] = {number: task.initial_memory for number, task in numbered}
    said: dict[int, Turn] = {}
    first = 1
    going = list(numbered)
    while going:
        last = next((end for end in ENDS if end >= first), first - 1 + WHOLE - (first - 1) % WHOLE)
        tasks = [_part(task, first, last, memory[number], said.get(number))
                 for number, task in going]  # fmt: skip
        for (number, task), episode in zip(going, player(tasks), strict=True):
            yield Part(number, _playable(episode), first, told[number])
            said[number] = episode.turns[-1]
            # Where memory is erased before every query, each part begins with what it is erased to.
            memory[number] = task.initial_memory if task.erase_memory else episode.final_memory
        going = [each for each in going if _answers(each[1]) > last]
        first = last + 1


def _part(task: Task, first: int, last: int, memory: Memory | None, before: Turn | None) -> Task:
    """The task of turns `first` to `last`. before: the last turn of the part before."""
    row, ends = _row(task), _answers(task) <= last
    if before is not None:
        said = replace(row.interactions[first - 2], answer=before.answer)
        turns = (*row.interactions[: first - 2], said, *row.interactions[first - 1 :])
        row = replace(row, interactions=turns)
    return replace(
        task,
        id=f"{task.id}-{first}",
        row=row,
        first_turn=first,
        max_turns=None if ends else last,
        initial_memory=memory,
        return_memory=task.return_memory or not (ends or task.erase_memory),
    )


def _playable(episode: Episode) -> Episode:
    if episode.status == "failed":
        raise DataFailure(f"episode {episode.id} could not be played: {episode.turns[-1].failure}")
    return episode


def _answers(task: Task) -> int:
    return len(task.row.interactions) if task.row is not None else 0


def _row(task: Task) -> Row:
    assert task.row is not None, "only a conversation of a row is long"
    return task.row
