"""Evaluation: held-out conversations played greedily, with the model's own answers in memory, as in
use.

Every figure comes with a control on the same questions, memory erased before each of them; recall
also with the most frequent answer of the training data. A model that guesses, or that answers from
the query alone, looks like its controls. The figures themselves are in `retention.py` (facts) and
`match.py` (references and rewards, which conversations without facts have too).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from common.config.names import BackendName
from common.config.run import Run
from common.data.columns import NO_COLUMNS, columns_of
from common.data.conversations import load_rows, value_counts
from common.data.corpus import Corpus
from common.data.datasets.prompts import load_prompts
from common.data.splits import conversation_hash, text_hash
from common.episode import Episode, Memory, Row, Task
from common.failures import DataFailure, InputError
from common.seeding import derive
from common.storage.checkpoint import open_checkpoint
from common.telemetry.progress import Progress, QuietProgress
from learner.evaluation.figures import Evaluation, Figure, Share, Sums, figures_json
from learner.evaluation.match import MATCH, SCORES, add_match, add_rewards
from learner.evaluation.measure import run_of, training_values
from learner.evaluation.memorisation import memorised
from learner.evaluation.parts import Part, Player, played_parts, whole
from learner.evaluation.retention import (
    FIGURES,
    add_facts,
    most_frequent_figure,
    retention_figures,
)
from learner.evaluation.scoring_player import ScoringPlayer
from learner.resume import evaluated_corpus
from reward_service.components.recall import Words, words_of_values

TRAINING_ROWS = 200
"""Training conversations that are played beside held-out ones, to tell memory from learning by
heart."""


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
    kept = played_figures(player, evaluation_tasks(rows, seed, erase=False), known_values)
    erased = played_figures(player, evaluation_tasks(rows, seed, erase=True), known_values)
    return Evaluation(kept.figures, erased.figures, kept.begun)


@dataclass
class Played:
    """Figures of conversations, and what is left of them once they are counted."""

    figures: dict[str, Figure]
    begun: list[Episode]
    """Each conversation up to the end of its first part."""
    left: list[Memory | None]
    """The memory that each ended with, where its task asked for it."""


def played_figures(
    player: Player, tasks: Sequence[Task], known_values: Collection[str] = ()
) -> Played:
    """Plays tasks and counts their turns as they come; long conversations are not held whole
    (parts.py)."""
    sums, everywhere = Sums(len(tasks)), words_of_values(known_values)
    begun: dict[int, Episode] = {}
    left: dict[int, Memory | None] = {}
    for part in played_parts(player, tasks):
        _add(sums, part, everywhere)
        begun.setdefault(part.conversation, part.episode)
        left[part.conversation] = part.episode.final_memory
    order = range(len(tasks))
    return Played(_figures(sums), [begun[i] for i in order], [left[i] for i in order])


def carried_figures(
    player: Player, rows: Sequence[Row], seed: int, known_values: Collection[str]
) -> dict[str, Figure]:
    """`figures_of` rows as `carried_tasks` begins them."""
    tasks = carried_tasks(player, evaluation_tasks(rows, seed, erase=False))
    return played_figures(player, tasks, known_values).figures


def carried_tasks(player: Player, tasks: Sequence[Task]) -> list[Task]:
    """The tasks, each with the memory which the conversation before it left; the first one with
    that of the last. Those conversations, which are played for it, began with fresh memory."""
    left = played_figures(player, [replace(task, return_memory=True) for task in tasks]).left
    carried = zip(tasks, [*left[-1:], *left[:-1]], strict=True)
    return [replace(task, initial_memory=memory) for task, memory in carried]


def figures_of(
    episodes: Sequence[Episode], known_values: Collection[str] = ()
) -> dict[str, Figure]:
    """Every figure of whole episodes by name: those of FIGURES and MATCH, and SCORES, mean rewards
    by component."""
    sums, everywhere = Sums(len(episodes)), words_of_values(known_values)
    for part in whole(episodes):
        _add(sums, part, everywhere)
    return _figures(sums)


def _add(sums: Sums, part: Part, everywhere: Collection[Words]) -> None:
    add_facts(sums, part, everywhere)
    add_match(sums, part)
    add_rewards(sums, part)


def _figures(sums: Sums) -> dict[str, Figure]:
    bounded = {name: sums.figure(name) for name in (*FIGURES, *MATCH)}
    return bounded | {SCORES: sums.figure(SCORES, bounded=False)}


def training_figures(
    player: Player, rows: Sequence[Row], seed: int, known_values: Collection[str]
) -> dict[str, Figure]:
    """`figures_of` a sample of training conversations, with memory kept."""
    taught = evaluation_tasks(evaluation_rows(rows, TRAINING_ROWS), seed, erase=False)
    return played_figures(player, taught, known_values).figures


def recall_by_distance(episodes: Sequence[Episode]) -> tuple[Share, dict[str, int]]:
    """(recall, asked facts) by distance: the turn that asks minus the turn that last said the
    value."""
    recall = retention_figures(episodes)["recall"]
    return recall.share(), recall.totals()


def evaluate_checkpoint(
    where: str,
    data: str | None = None,
    backend: BackendName | None = None,
    progress: Progress | None = None,
    carried: bool = False,
) -> dict[str, Any]:
    """`engram eval`: every figure of a checkpoint (or of a run's latest) on MRL rows, as `to_json`
    gives it.

    data: None takes the held-out conversations of the checkpoint's run, and a sample of its
    training conversations beside them. backend: None takes that of the run. carried: also play
    each conversation from the memory that another one left. Rewards are what the
    run's MRL pays: its mix, the values its training data know, the token embedding that its MRL
    compares with. `progress` is told how many conversations were played.
    Raises InputError where `where` is no model checkpoint or `data` holds no valid rows.
    """
    checkpoint = open_checkpoint(where)
    directory = run_of(checkpoint.where)
    run = directory.run() if directory else None
    told = progress or QuietProgress()
    with told.doing(f"reading {data or f'the conversations of {checkpoint.where}'}"):
        corpus = None if data is not None else corpus_of_run(checkpoint.where, run)
    if corpus is not None and run is not None:
        rows = evaluation_rows(corpus.eval, run.evaluation.episodes)
    else:
        assert data is not None, "without data there is a run"
        rows = _rows_in(data, run)
    source = data if data is not None else f"the held-out conversations of {checkpoint.where}"
    values = training_values(directory) if directory else value_counts(rows)
    seed = run.seed if run else 0
    sample = min(len(corpus.train), TRAINING_ROWS) if corpus else 0
    passes = (4 if carried else 2) + are_prompts(rows)
    told.stage("evaluation", passes * len(rows) + sample, "conversations")
    player = ScoringPlayer(checkpoint, run, backend, list(values), len(rows), told)
    prompts: dict[str, Any] = {}
    player.require_fitting(rows, source)
    try:
        found = evaluate(player, rows, seed, values)
        beside = {}
        if are_prompts(rows):
            prompts = player.prompts(rows, seed)
        if carried:
            beside["carried"] = carried_figures(player, rows, seed, values)
        if corpus:
            beside["training"] = training_figures(player, corpus.train, seed, values)
    except DataFailure as misfit:
        raise InputError(source, str(misfit)) from misfit
    result = to_json(found, most_frequent_figure(values, rows), beside)
    more = {"prompts": prompts, "cost": player.cost.to_json()}
    return result | {name: figures for name, figures in more.items() if figures}


def _rows_in(data: str, run: Run | None) -> list[Row]:
    if run is not None and run.data.prompts:
        return load_prompts(data)
    return load_rows(data, columns_of(run.data.row_columns) if run else NO_COLUMNS)


def are_prompts(rows: Sequence[Row]) -> bool:
    """Whether the rows are single prompts, before which nothing is told."""
    return all(not row.query and len(row.interactions) == 1 for row in rows)


def to_json(
    found: Evaluation, most_frequent: Figure, beside: Mapping[str, dict[str, Figure]]
) -> dict[str, Any]:
    """Return the object that `engram eval --json` prints.

    retention: recall and its controls, and the other figures of facts. match: agreement with the
    references. scores: mean rewards by component. Each of the three has the intervals and counts of
    all its shares beside them. beside: figures of the same questions from memory that was carried
    over ("carried"), and of a sample of training conversations ("training").
    """
    seen = {"memory": found.figures, "erased": found.erased, **beside}
    recall = {name: figures["recall"] for name, figures in seen.items()}
    recall["most_frequent"] = most_frequent
    others = {name: found.figures[name] for name in FIGURES if name != "recall"}
    match = {name: {who: figures[name] for who, figures in seen.items()} for name in MATCH}
    scores = figures_json({who: figures[SCORES] for who, figures in seen.items()})
    warning = memorised(beside["training"], found) if "training" in beside else None
    return {
        "retention": figures_json(recall | others),
        "match": figures_json(match),
        "scores": scores,
        "counts": found.counts,
        "rewards": scores["memory"],
        "warnings": [warning] if warning else [],
    }


def corpus_of_run(where: str, run: Run | None) -> Corpus:
    """The conversations that a run trains and evaluates on, read or generated anew. InputError
    where they are others than when it was started."""
    directory = run_of(where)
    if run is None or directory is None:
        raise InputError(
            where, "lies in no run, so it has no held-out conversations; name a file with --data"
        )
    return evaluated_corpus(run, directory)
