"""Which episodes of a run can be replayed: those that were played to their end with weights that a
kept checkpoint holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.storage.checkpoint import whole_checkpoints
from common.storage.run_directory import RunDirectory
from rollout.journal.reader import Recorded, episode_heads, find_episodes

SHOWN = 20
"""Episodes that `engram replay RUN` names."""


@dataclass(frozen=True, slots=True)
class Line:
    """One episode that can be replayed."""

    episode: str
    stage: int
    """Index in the run."""
    step: str
    """Curriculum step."""
    iteration: int
    weights_version: int
    answers: int
    reward: float | None
    """Mean of its scored answers; None where none was scored."""


@dataclass(frozen=True, slots=True)
class Replayable:
    """Episodes of a run that can be replayed."""

    run: str
    recorded: int
    """Episodes of the run."""
    replayable: int
    kept_steps: list[int]
    """Steps of the checkpoints that are kept."""
    episodes: list[Line]
    """The most recent of them, newest iteration first."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def replayable(where: str, count: int = SHOWN) -> Replayable:
    """The episodes of the run in the folder `where` that can be replayed, `count` of them named.

    Raises InputError where there is no such run, or it has no episodes.
    """
    directory = RunDirectory.existing(where)
    heads = episode_heads(directory)
    kept = sorted(checkpoint.step for checkpoint in whole_checkpoints(directory))
    played = pc.and_(
        pc.is_in(heads["weights_version"], pa.array(kept, pa.int64())),
        pc.not_equal(heads["status"], "failed"),
    )
    possible = heads.filter(played)
    ids = possible["id"].slice(0, count).to_pylist()
    lines = [_line(found) for found in find_episodes(directory, ids)]
    return Replayable(directory.path(), len(heads), len(possible), kept, lines)


def _line(found: Recorded) -> Line:
    episode = found.episode
    rewards = [turn.reward for turn in episode.answered if turn.reward is not None]
    return Line(
        episode.id,
        found.stage,
        episode.step,
        episode.iteration,
        episode.weights_version,
        len(episode.answered),
        sum(rewards) / len(rewards) if rewards else None,
    )
