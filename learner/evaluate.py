"""Retention: of the facts asked for, how many stand in the answer, by how many turns ago they were last said.

Every figure comes with two controls on the same questions: memory erased before each of them, and the most frequent answer of the
training data. A model that guesses, or that answers from the query alone, looks like its controls. Decoding is greedy, and memory is
written with the model's own answers, as in use.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.checkpoint import open_checkpoint
from common.config.schema import Run
from common.data.rows import load_rows
from common.data.sources import load_corpus
from common.data.tokenizer import SPECIAL_TOKENS
from common.episode import Episode, Row, Task
from common.failures import DataFailure, InputError
from common.run_directory import RunDirectory
from common.seeding import derive
from common.text import contains_value
from learner.training_state import checkpoint_model
from reward_service.compose import score_episodes
from rollout.policies.reactive import ReactiveEngine

Player = Callable[[list[Task]], list[Episode]]
"""Plays tasks with the weights under test; episodes in the order of tasks."""

Recall = dict[str, float]
"""Share of asked facts by distance, as a string; "all" is over all distances."""


def evaluation_tasks(rows: Sequence[Row], seed: int, erase: bool) -> list[Task]:
    """Greedy tasks whose seeds do not depend on `erase`, so that both start from the same memory."""
    name = "erased" if erase else "memory"
    return [
        Task(f"eval-{name}-{i}", row, derive(seed, "evaluation", i), step="evaluation", greedy=True, erase_memory=erase)
        for i, row in enumerate(rows)
    ]


def recall_by_distance(episodes: Iterable[Episode]) -> tuple[Recall, dict[str, int]]:
    """(recall, asked facts) by distance: the turn that asks minus the turn that last said the value."""
    asked: Counter[str] = Counter()
    recalled: Counter[str] = Counter()
    for episode in episodes:
        if episode.status == "failed":
            raise DataFailure(f"episode {episode.id} could not be played: {episode.turns[-1].failure}")
        for index, turn in enumerate(episode.turns):
            for fact in turn.facts if index else ():
                hit = contains_value(turn.answer, fact.value)
                for key in (str(index - fact.said_in), "all"):
                    asked[key] += 1
                    recalled[key] += hit
    ordered = sorted(asked, key=lambda key: (key == "all", int(key) if key != "all" else 0))
    return {key: recalled[key] / asked[key] for key in ordered}, {key: asked[key] for key in ordered}


def most_frequent_recall(train: Iterable[Row], rows: Iterable[Row]) -> Recall:
    """Recall of always answering the value that training conversations ask for most."""
    values = Counter(fact.value for row in train for turn in row.interactions for fact in turn.facts)
    guess = min(values, key=lambda value: (-values[value], value)) if values else ""
    asked: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for index, turn in enumerate(row.turns):
            for fact in turn.facts if index else ():
                for key in (str(index - fact.said_in), "all"):
                    asked[key].append(contains_value(guess, fact.value))
    return {key: sum(hits) / len(hits) for key, hits in sorted(asked.items(), key=lambda item: (item[0] == "all", item[0].zfill(4)))}


def retention(play: Player, rows: Sequence[Row], seed: int) -> tuple[dict[str, Recall], dict[str, int], list[Episode]]:
    """Recall with memory and with memory erased, how many facts were asked by distance, and the episodes played with memory."""
    episodes = play(evaluation_tasks(rows, seed, erase=False))
    memory, counts = recall_by_distance(episodes)
    erased, _ = recall_by_distance(play(evaluation_tasks(rows, seed, erase=True)))
    return {"memory": memory, "erased": erased}, counts, episodes


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


def evaluate_checkpoint(where: str, data: str) -> dict[str, Any]:
    """`engram eval`: retention, counts and rewards of a checkpoint (or of a run's latest) on MRL rows.

    Raises InputError where `where` is no model checkpoint or `data` holds no valid rows or no questions.
    """
    checkpoint = open_checkpoint(where)
    rows = load_rows(data)
    if not any(turn.facts for row in rows for turn in row.interactions):
        raise InputError(data, "asks for no facts: no interaction has the field 'facts', so there is no retention to measure")
    model, tokenizer = checkpoint_model(checkpoint)
    run = run_of(checkpoint.where)
    sampling = run.rollout.sampling if run else Run.model_fields["rollout"].default.sampling
    engine = ReactiveEngine(model.eval(), tokenizer, min(64, len(rows)), sampling)

    def play(tasks: list[Task]) -> list[Episode]:
        try:
            return engine.run(tasks)
        except DataFailure as misfit:
            raise InputError(data, str(misfit)) from misfit

    recall, counts, episodes = retention(play, rows, run.seed if run else 0)
    rewards = run.rewards if run else Run.model_fields["rewards"].default
    scored = score_episodes(episodes, rewards, model.embedding.weight.detach().numpy(), tuple(range(len(SPECIAL_TOKENS))))
    train = load_corpus(run.data, run.seed).train if run else rows
    return {
        "retention": recall | {"most_frequent": most_frequent_recall(train, rows)},
        "counts": counts,
        "rewards": mean_rewards(scored),
    }


def run_of(where: str) -> Run | None:
    """The configuration of the run that a checkpoint lies in, None where it lies elsewhere."""
    folder, _, _ = where.rstrip("/").rpartition("/checkpoints/")
    if not folder:
        return None
    root, _, name = folder.rpartition("/")
    directory = RunDirectory(root, name)
    if not directory.exists("config.yaml"):
        return None
    return directory.run()
