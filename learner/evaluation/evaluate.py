"""Evaluation: held-out conversations played greedily, with the model's own answers in memory, as in
use.

Every figure comes with a control on the same questions, memory erased before each of them; recall
also with the most frequent answer of the training data. A model that guesses, or that answers from
the query alone, looks like its controls. The figures themselves are in `retention.py` (facts) and
`match.py` (references and rewards, which conversations without facts have too).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from common.config.names import BackendName
from common.config.run import Run
from common.data.columns import NO_COLUMNS, columns_of
from common.data.conversations import load_rows, value_counts
from common.data.corpus import Corpus
from common.data.datasets.prompts import load_prompts
from common.data.splits import conversation_hash, text_hash
from common.episode import Episode, Row, Task
from common.failures import DataFailure, InputError, Unavailable
from common.seeding import derive
from common.storage.checkpoint import Checkpoint, open_checkpoint
from common.telemetry.progress import Progress, QuietProgress
from learner.evaluation.figures import Evaluation, Figure, Share, figures_json
from learner.evaluation.match import MATCH, match_figures, reward_figure
from learner.evaluation.measure import reward_embedding, run_of, training_values
from learner.evaluation.memorisation import memorised
from learner.evaluation.retention import FIGURES, most_frequent_figure, retention_figures
from learner.policies.table import CheckpointPolicy, open_policy
from learner.resume import evaluated_corpus
from learner.training_state import TrainingState
from reward_service.compose import score_episodes
from rollout.policies.play import play
from rollout.protocols import Policy

log = logging.getLogger(__name__)

TRAINING_ROWS = 200
"""Training conversations that are played beside held-out ones, to tell memory from learning by
heart."""

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
    return Evaluation(
        figures_of(episodes, known_values), figures_of(erased, known_values), episodes
    )


def carried_figures(
    player: Player, rows: Sequence[Row], seed: int, known_values: Collection[str]
) -> dict[str, Figure]:
    """`figures_of` rows that each begin with the memory which the conversation before it left; the
    first one with that of the last. Those conversations began with fresh memory."""
    tasks = evaluation_tasks(rows, seed, erase=False)
    left = [
        episode.final_memory
        for episode in player([replace(task, return_memory=True) for task in tasks])
    ]
    carried = zip(tasks, [*left[-1:], *left[:-1]], strict=True)
    episodes = player([replace(task, initial_memory=memory) for task, memory in carried])
    return figures_of(episodes, known_values)


def figures_of(
    episodes: Sequence[Episode], known_values: Collection[str] = ()
) -> dict[str, Figure]:
    """Every figure of whole episodes by name: those of FIGURES and MATCH, and "scores", mean
    rewards by component."""
    match = match_figures(episodes)
    return retention_figures(episodes, known_values) | match | {"scores": reward_figure(episodes)}


def training_figures(
    player: Player, rows: Sequence[Row], seed: int, known_values: Collection[str]
) -> dict[str, Figure]:
    """`figures_of` a sample of training conversations, with memory kept."""
    taught = evaluation_tasks(evaluation_rows(rows, TRAINING_ROWS), seed, erase=False)
    return figures_of(player(taught), known_values)


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
    return result | ({"prompts": prompts} if prompts else {})


def _rows_in(data: str, run: Run | None) -> list[Row]:
    if run is not None and run.data.prompts:
        return load_prompts(data)
    return load_rows(data, columns_of(run.data.row_columns) if run else NO_COLUMNS)


class ScoringPlayer:
    """A `Player` on this machine, with the weights of a checkpoint and the rewards of its run's
    MRL."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        run: Run | None,
        backend: BackendName | None,
        known_values: Collection[str],
        slots: int,
        progress: Progress,
    ):
        self._progress, self._played = progress, 0
        rollout = run.rollout if run else Run.model_fields["rollout"].default
        settings = {
            "slots": min(64, slots),
            "dtype": "float32",
            "backend": backend or rollout.command_backend,
        }
        self._opened = opened = open_policy(checkpoint)
        self._checkpoint, self._run, self._sampling = checkpoint, run, rollout.sampling
        self._rollout = rollout.model_copy(update=settings)
        self._policy = opened.playing(self._rollout)
        self._special = opened.special_ids
        self._rewards = run.rewards if run else Run.model_fields["rewards"].default
        self._embedding = reward_embedding(checkpoint, mrl_stage(checkpoint, run))
        self._known_values = known_values
        self._scores = True

    def prompts(self, rows: Sequence[Row], seed: int) -> dict[str, Any]:
        """Figures of sampled answers; none of a Reactive Transformer, whose reference is not
        opened here."""
        if self._opened.kind != "causal":
            return {}
        from learner.evaluation.prompts import prompt_figures, prompt_tasks, reference_of

        reference = reference_of(self._checkpoint, self._opened, self._run)
        end, temperature = self._opened.tokenizer.eos_id, self._sampling.temperature or 1.0
        played = self(prompt_tasks(rows, seed))
        figures = prompt_figures(played, end, reference, temperature)
        if reference is not None:
            others = play(self._playing(reference.module), prompt_tasks(rows, seed))
            figures |= self._against(played, others, figures["samples"])
        return figures

    def _playing(self, module: Any) -> Policy:
        """Another model of the same shape as this one plays."""
        return CheckpointPolicy("causal", module, self._opened.tokenizer).playing(self._rollout)

    def _against(
        self,
        played: Sequence[Episode],
        others: Sequence[Episode],
        samples: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        """The policy's answers beside the reference's to the same prompts, and how often the judge
        of the run finds them better."""
        from learner.evaluation.prompts import win_figures

        answers = {e.answered[0].query: e.answered[0].answer for e in others if e.answered}
        beside = [sample | {"reference": answers.get(sample["prompt"])} for sample in samples]
        judge = self._run.evaluation.judge if self._run is not None else None
        if judge is None:
            return {"samples": beside}
        ours, theirs = (
            [
                episode.answered[0].reward if episode.answered else None
                for episode in score_episodes(each, judge.rewards, self._embedding, self._special)
            ]
            for each in (played, others)
        )
        return {"samples": beside, "wins": win_figures(ours, theirs)}

    def __call__(self, tasks: list[Task]) -> list[Episode]:
        before = self._played
        episodes = play(self._policy, tasks, lambda done: self._progress.update(before + done))
        self._played += len(tasks)
        try:
            return (
                score_episodes(
                    episodes, self._rewards, self._embedding, self._special, self._known_values
                )
                if self._scores
                else episodes
            )
        except (
            Unavailable,
            InputError,
        ) as missing:  # an endpoint that is away, a function whose file is not there
            self._scores = False
            log.warning("rewards are left out, other figures need none: %s", missing)
            return episodes


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
    scores = figures_json({who: figures["scores"] for who, figures in seen.items()})
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


def mrl_stage(checkpoint: Checkpoint, run: Run | None) -> int:
    """Index of the MRL stage whose rewards judge the checkpoint: the one it is from, else the
    next, else one that would follow the last."""
    if run is None:
        return 0
    stage, stages = TrainingState.of(checkpoint).stage, run.stages
    return next(
        (index for index in range(stage, len(stages)) if stages[index].needs_rollout), len(stages)
    )
