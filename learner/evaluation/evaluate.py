"""Evaluation: held-out conversations played greedily, with the model's own answers in memory, as in
use.

Every figure comes with two controls on the same questions: memory erased before each of them, and
the most frequent answer of the training data. A model that guesses, or that answers from the query
alone, looks like its controls. `retention.py` has the figures themselves.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from common.config.names import BackendName
from common.config.run import Run
from common.data.conversations import load_rows, value_counts
from common.data.splits import conversation_hash, text_hash
from common.data.tokenizer import SPECIAL_TOKENS
from common.episode import Episode, Row, Task
from common.failures import DataFailure, InputError, Unavailable
from common.seeding import derive
from common.storage.checkpoint import Checkpoint, open_checkpoint
from learner.evaluation.measure import reward_embedding, run_of, training_values
from learner.evaluation.retention import (
    FIGURES,
    Evaluation,
    Figure,
    Interval,
    Share,
    most_frequent_figure,
    retention_figures,
)
from learner.policies.table import open_policy
from learner.resume import evaluated_corpus
from learner.training_state import TrainingState
from reward_service.compose import score_episodes
from rollout.policies.play import play

log = logging.getLogger(__name__)

Player = Callable[[list[Task]], list[Episode]]
"""Plays tasks with the weights under test; episodes in the order of tasks."""


def evaluation_tasks(rows: Sequence[Row], seed: int, erase: bool) -> list[Task]:
    """Greedy tasks whose seeds do not depend on `erase`, so that both start from the same
    memory."""
    name = "erased" if erase else "memory"
    return [
        Task(
            f"eval-{name}-{i}",
            row,
            derive(seed, "evaluation", i),
            step="evaluation",
            greedy=True,
            erase_memory=erase,
            batch_index=i,
        )
        for i, row in enumerate(rows)
    ]


def evaluation_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` conversations, or all if there are fewer, evenly over sources, in each of these over
    strategies, and in each of those over lengths. Hashes decide what comes first, so the choice
    does not depend on the order of the file.
    """
    parts = [lambda row: row.source, lambda row: row.strategy, lambda row: len(row.interactions)]
    return _in_turn(sorted(rows, key=conversation_hash), parts)[:count]


def _in_turn(rows: list[Row], parts: Sequence[Callable[[Row], Any]]) -> list[Row]:
    """The rows in an order that takes one of each part in turn."""
    if not parts:
        return rows
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[parts[0](row)].append(row)
    named = sorted(groups.items(), key=lambda group: text_hash(str(group[0])))
    taken = zip_longest(*(_in_turn(group, parts[1:]) for _, group in named))
    return [row for each in taken for row in each if row is not None]


def evaluate(
    player: Player, rows: Sequence[Row], seed: int, known_values: Collection[str]
) -> Evaluation:
    """The figures of `rows` with memory and with memory erased. known_values: those of training
    data."""
    episodes = player(evaluation_tasks(rows, seed, erase=False))
    erased = player(evaluation_tasks(rows, seed, erase=True))
    figures = retention_figures(episodes, known_values)
    return Evaluation(figures, retention_figures(erased, known_values)["recall"], episodes)


def recall_by_distance(episodes: Sequence[Episode]) -> tuple[Share, dict[str, int]]:
    """(recall, asked facts) by distance: the turn that asks minus the turn that last said the
    value."""
    recall = retention_figures(episodes)["recall"]
    return recall.share(), recall.totals()


def mean_rewards(episodes: Iterable[Episode]) -> dict[str, float]:
    """Mean of each raw component and of the total, each over the turns that have it."""
    seen: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        for turn in episode.answered:
            for name, value in turn.rewards.items():
                seen[name].append(value)
            if turn.reward is not None:
                seen["total"].append(turn.reward)
    return {name: sum(values) / len(values) for name, values in sorted(seen.items())}


def evaluate_checkpoint(
    where: str, data: str | None = None, backend: BackendName | None = None
) -> dict[str, Any]:
    """`engram eval`: retention, counts and rewards of a checkpoint (or of a run's latest) on MRL
    rows.

    data: None takes the held-out conversations of the checkpoint's run. backend: None takes that of
    the run. Rewards are what the run's
    MRL
    pays: its mix, the values its training data know, the token embedding that its MRL compares
    with.
    Raises InputError where `where` is no model checkpoint or `data` holds no valid rows or no
    questions.
    """
    checkpoint = open_checkpoint(where)
    directory = run_of(checkpoint.where)
    run = directory.run() if directory else None
    rows = load_rows(data) if data is not None else held_out_rows(checkpoint.where, run)
    source = data if data is not None else f"the held-out conversations of {checkpoint.where}"
    if not any(turn.facts for row in rows for turn in row.interactions):
        raise InputError(
            source,
            "asks for no facts: no interaction has the field 'facts', so there is no retention "
            "to measure",
        )
    rollout = run.rollout if run else Run.model_fields["rollout"].default
    settings = {
        "slots": min(64, len(rows)),
        "dtype": "float32",
        "backend": backend or rollout.backend,
    }
    policy = open_policy(checkpoint).playing(rollout.model_copy(update=settings))

    values = training_values(directory) if directory else value_counts(rows)
    try:
        found = evaluate(partial(play, policy), rows, run.seed if run else 0, values)
    except DataFailure as misfit:
        raise InputError(source, str(misfit)) from misfit
    rewards = run.rewards if run else Run.model_fields["rewards"].default
    embedding = reward_embedding(checkpoint, mrl_stage(checkpoint, run))
    special = tuple(range(len(SPECIAL_TOKENS)))
    try:
        scored = score_episodes(found.episodes, rewards, embedding, special, values)
    except (
        Unavailable,
        InputError,
    ) as missing:  # an endpoint that is away, a function whose file is not there
        log.warning("rewards are left out, recall needs none: %s", missing)
        scored = []
    return {
        "retention": retention_json(found, most_frequent_figure(values, rows)),
        "counts": found.counts,
        "rewards": mean_rewards(scored),
    }


def retention_json(found: Evaluation, most_frequent: Figure) -> dict[str, Any]:
    """Shares by key of everything that was measured, and their 95 % intervals under the same
    names."""
    figures = {
        "memory": found.figures["recall"],
        "erased": found.erased,
        "most_frequent": most_frequent,
    }
    figures |= {name: found.figures[name] for name in FIGURES if name != "recall"}
    shares: dict[str, Any] = {name: figure.share() for name, figure in figures.items()}
    intervals: dict[str, dict[str, Interval]] = {
        name: figure.intervals() for name, figure in figures.items()
    }
    return shares | {"intervals": intervals}


def held_out_rows(where: str, run: Run | None) -> list[Row]:
    """The conversations that a run evaluates on, read or generated anew. InputError where they are
    others than when it was started."""
    directory = run_of(where)
    if run is None or directory is None:
        raise InputError(
            where, "lies in no run, so it has no held-out conversations; name a file with --data"
        )
    return evaluation_rows(evaluated_corpus(run, directory).eval, run.evaluation.episodes)


def mrl_stage(checkpoint: Checkpoint, run: Run | None) -> int:
    """Index of the MRL stage whose rewards judge the checkpoint: the one it is from, else the
    next."""
    if run is None:
        return 0
    stage, stages = TrainingState.of(checkpoint).stage, run.stages
    return next(
        (index for index in range(stage, len(stages)) if stages[index].needs_rollout), stage
    )
