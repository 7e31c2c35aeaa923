"""`engram replay`: one recorded episode again, with the weights that played it, and where the two
part.

An episode is a function of its task, its seed and the weights
(rollout/policies/reactive/engine.py), and all of them are in the run. So a replay that differs
means that something is not what the run says it is: other weights, another machine's arithmetic,
changed code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from common.config.names import BackendName
from common.data.special_tokens import thinks
from common.data.tokenizer import ANSWER
from common.episode import Episode, Interaction, Row, Task, Turn
from common.failures import InputError, Unavailable
from common.storage.checkpoint import Checkpoint, whole_checkpoints
from common.storage.run_directory import RunDirectory
from learner.evaluation.measure import reward_embedding, training_values
from learner.policies.table import open_policy
from reward_service import normalization as statistics
from reward_service.compose import score_episodes
from rollout.environments.table import ENVIRONMENTS
from rollout.journal.reader import find_episode
from rollout.policies.play import play

LOG_PROBS_AGREE = 1e-5
"""Log-probs that differ by no more are the same: the arithmetic of two batches may round
differently."""
REWARDS_AGREE = 1e-9


@dataclass(frozen=True, slots=True)
class Parting:
    """The first place where replay and record are not the same."""

    turn: int
    what: str
    """"query", "tokens", "log_probs", "rewards", "turns" (their number) or "memory". Of a memory
    that was written as text "memory_prompt", "memory_tokens" and "memory_log_probs", too; of a
    thought apart from its answer "thought", "thought_tokens" and "thought_log_probs"."""
    token: int | None
    """Index in the answer, or the memory, for tokens and log-probs."""
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        place = f"turn {self.turn}" + ("" if self.token is None else f", token {self.token}")
        return (
            f"{self.what} part at {place}: recorded {self.recorded!r}, replayed {self.replayed!r}"
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """Result of a replay. The two episodes are identical where `parted` is None."""

    episode: str
    checkpoint: str
    weights_version: int
    turns: int
    tokens: int
    log_prob_max_difference: float
    """Over the tokens before the first that differs."""
    memory_hash: str
    parted: Parting | None
    rewards_not_compared: str | None = None
    """Why, where something that rewards need was away."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"identical": self.parted is None}


def replay(where: str, episode_id: str, backend: BackendName | None = None) -> Replay:
    """Replay an episode of the run in the folder `where`.

    backend: None takes that of the run.

    Raises InputError where there is no such run or episode, where it failed, or where the
    checkpoint that played it is gone.
    """
    directory = RunDirectory.existing(where)
    run = directory.run()
    found = find_episode(directory, episode_id)
    recorded = found.episode
    if recorded.status == "failed":
        why = next(
            (turn.failure for turn in reversed(recorded.turns) if turn.failure),
            "no reason was recorded",
        )
        raise InputError(
            episode_id, f"was not played to its end, so there is nothing to compare: {why}"
        )
    checkpoint = checkpoint_of(directory, recorded)
    opened = open_policy(checkpoint)
    torch.set_num_threads(run.rollout.threads)
    settings = {"slots": 1, "backend": backend or run.rollout.backend}
    alone = run.rollout.model_copy(update=settings)
    policy = opened.playing(alone, run.environment, recorded.weights_version)
    played = play(policy, [task_of(recorded, opened.tokenizer)])
    embedding = reward_embedding(checkpoint, found.stage)
    known, special = training_values(directory), opened.special_ids
    unscored: str | None = None
    try:
        (again,) = score_episodes(
            played, run.rewards, embedding, special, known, statistics.recorded(recorded)
        )
    except Unavailable as away:
        (again,), unscored = played, str(away)
    return Replay(
        recorded.id, checkpoint.where, recorded.weights_version, len(recorded.answered),
        sum(len(turn.answer_ids) for turn in recorded.answered),
        log_prob_difference(recorded, again), again.memory_hash,
        parting(recorded, again, rewards=unscored is None), unscored,
    )  # fmt: skip


def checkpoint_of(directory: RunDirectory, episode: Episode) -> Checkpoint:
    """The checkpoint whose weights an episode was played with: `weights_version` counts the steps
    of the run that had made them."""
    kept = {checkpoint.step: checkpoint for checkpoint in whole_checkpoints(directory)}
    if episode.weights_version in kept:
        return kept[episode.weights_version]
    raise InputError(
        episode.id,
        f"was played with the weights of step {episode.weights_version}, and checkpoints are kept "
        f"of steps {', '.join(map(str, sorted(kept)))} (learner.keep_checkpoints)",
    )


def task_of(episode: Episode, tokenizer: Any) -> Task:
    """The task that an episode was dealt as. Raises InputError where its texts are other tokens
    than it recorded."""
    task = Task(
        id=episode.task,
        row=None,
        seed=episode.seed,
        step=episode.step,
        teacher_forcing=any(turn.teacher_forced for turn in episode.turns),
        initial_memory=episode.initial_memory,
        environment=episode.environment,
        # What was written after the last turn, nothing in this replay would read.
        return_memory=any(write.turn == len(episode.answered) for write in episode.writes),
        max_turns=len(episode.answered),
        sample=episode.sample,
    )
    if not ENVIRONMENTS[episode.environment].plays_rows:
        return task
    thoughtful = {thought.turn for thought in episode.thoughts}
    turns = [
        _interaction(turn, tokenizer, index in thoughtful)
        for index, turn in enumerate(episode.turns)
    ]
    opening, *follow_ups = turns
    for index, (turn, interaction) in enumerate(zip(episode.turns, turns, strict=True)):
        # Where nothing was told, a causal policy's opening has no tokens.
        if turn.query_ids and tokenizer.prompt(
            interaction.query, interaction.think is not None
        ) != list(turn.query_ids):
            raise InputError(
                episode.id,
                f"turn {index} was recorded with other tokens than this checkpoint's tokenizer "
                "makes of its query",
            )
    row = Row(opening.query, opening.answer, tuple(follow_ups), opening.think, episode.strategy)
    return replace(task, row=row)


def _interaction(turn: Turn, tokenizer: Any, thought: bool) -> Interaction:
    """thought: whether the turn has a thought apart from its answer; that of the reference is not
    recorded then."""
    ids, think = list(turn.reference_ids), "" if thought else None
    if thinks(turn.query_ids):
        think = tokenizer.decode(ids[: ids.index(ANSWER)])
    return Interaction(turn.query, turn.reference, think, turn.role, turn.facts)


def log_prob_difference(recorded: Episode, again: Episode) -> float:
    """The largest, over tokens before the first that differs."""
    largest = 0.0
    for old, new in zip(recorded.actions, again.actions, strict=False):
        for a, b, x, y in zip(old.ids, new.ids, old.log_probs, new.log_probs, strict=False):
            if a != b:
                return largest
            largest = max(largest, abs(x - y))
        if len(old.ids) != len(new.ids):
            return largest
    return largest


def parting(recorded: Episode, again: Episode, rewards: bool = True) -> Parting | None:
    """The first difference, in the order in which an episode is played: of each turn tokens,
    log-probs, rewards, the memory that was written as text; then the last memory.

    rewards: whether they are compared.
    """
    for index, (old, new) in enumerate(zip(recorded.turns, again.turns, strict=False)):
        if list(old.query_ids) != list(new.query_ids):
            return Parting(index, "query", None, old.query, new.query)
        parted = _thought_parting(index, recorded, again) or _tokens_parting(
            index, "", (old.answer_ids, old.log_probs), (new.answer_ids, new.log_probs)
        )
        if parted is not None:
            return parted
        for name in sorted(old.rewards.keys() | new.rewards.keys()) if rewards else ():
            if not _agree(old.rewards.get(name), new.rewards.get(name)):
                return Parting(
                    index,
                    "rewards",
                    None,
                    {name: old.rewards.get(name)},
                    {name: new.rewards.get(name)},
                )
        if rewards and not _agree(old.reward, new.reward):
            return Parting(index, "rewards", None, old.reward, new.reward)
        parted = _write_parting(index, recorded, again)
        if parted is not None:
            return parted
    if len(recorded.turns) != len(again.turns):
        last = min(len(recorded.turns), len(again.turns)) - 1
        return Parting(last, "turns", None, len(recorded.turns), len(again.turns))
    if recorded.memory_hash != again.memory_hash:
        return Parting(
            len(recorded.turns) - 1, "memory", None, recorded.memory_hash, again.memory_hash
        )
    return None


def _tokens_parting(
    turn: int,
    whose: str,
    old: tuple[Sequence[int], Sequence[float]],
    new: tuple[Sequence[int], Sequence[float]],
) -> Parting | None:
    """The first token, or log-prob, that differs. old, new: ids and log-probs."""
    a, b = list(old[0]), list(new[0])
    if a != b:
        pairs = enumerate(zip(a, b, strict=False))
        token = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
        found = (ids[token] if token < len(ids) else None for ids in (a, b))
        return Parting(turn, f"{whose}tokens", token, *found)
    for token, (x, y) in enumerate(zip(old[1], new[1], strict=True)):
        if abs(x - y) > LOG_PROBS_AGREE:
            return Parting(turn, f"{whose}log_probs", token, x, y)
    return None


def _thought_parting(turn: int, recorded: Episode, again: Episode) -> Parting | None:
    """Where two thoughts part that stand apart from the answer of a turn."""
    old, new = (
        next((thought for thought in each.thoughts if thought.turn == turn), None)
        for each in (recorded, again)
    )
    if old is None or new is None:
        return (
            None if old is new else Parting(turn, "thought", None, old is not None, new is not None)
        )
    return _tokens_parting(turn, "thought_", (old.ids, old.log_probs), (new.ids, new.log_probs))


def _write_parting(turn: int, recorded: Episode, again: Episode) -> Parting | None:
    """Where two memories part that were written as text after a turn."""
    old, new = (
        next((write for write in each.writes if write.turn == turn), None)
        for each in (recorded, again)
    )
    if old is None or new is None:
        same = old is new
        return None if same else Parting(turn, "memory", None, old and old.text, new and new.text)
    if list(old.prompt_ids) != list(new.prompt_ids):
        return Parting(turn, "memory_prompt", None, len(old.prompt_ids), len(new.prompt_ids))
    return _tokens_parting(turn, "memory_", (old.ids, old.log_probs), (new.ids, new.log_probs))


def _agree(old: float | None, new: float | None) -> bool:
    """Both absent, or as good as equal."""
    return (
        old is new
        if old is None or new is None
        else math.isclose(old, new, rel_tol=0, abs_tol=REWARDS_AGREE)
    )
