"""Plays conversations with the weights of a checkpoint, and pays as its run does."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from common.config.names import BackendName
from common.config.run import Run
from common.episode import Episode, Row, Task
from common.failures import InputError, Unavailable
from common.storage.checkpoint import Checkpoint
from common.telemetry.progress import Progress
from learner.evaluation.figures import in_powers
from learner.evaluation.fitting import require_fitting
from learner.evaluation.measure import reward_embedding
from learner.evaluation.parts import ENDS
from learner.policies.table import CheckpointPolicy, open_policy
from learner.training_state import TrainingState
from reward_service.compose import score_episodes
from rollout.policies.play import play
from rollout.protocols import Policy

log = logging.getLogger(__name__)


class Cost:
    """Seconds that long conversations take for a turn, by the number of the turn."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._turns: dict[str, int] = defaultdict(int)

    def add(self, last: int, turns: int, seconds: float) -> None:
        """last: the last turn of the parts that were played together; turns: of all of them."""
        key = in_powers(last) if last > ENDS[0] else f"1-{ENDS[0]}"
        self._seconds[key] += seconds
        self._turns[key] += turns

    def to_json(self) -> dict[str, dict[str, float]]:
        """Mean "seconds" of a turn and how many "turns" they are of, by the number of the turn;
        empty where no conversation was long."""
        if not self._turns:
            return {}
        seconds = {key: self._seconds[key] / turns for key, turns in self._turns.items()}
        return {"seconds": seconds, "turns": dict(self._turns)}


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
        self.rollout = rollout.model_copy(update=settings)
        """How it plays, slots and backend included."""
        self._policy = opened.playing(self.rollout)
        self._special = opened.special_ids
        self._rewards = run.rewards if run else Run.model_fields["rewards"].default
        self._embedding = reward_embedding(checkpoint, mrl_stage(checkpoint, run))
        self._known_values = known_values
        self._scores = True
        self.cost = Cost()

    def require_fitting(self, rows: Sequence[Row], source: str) -> None:
        """Raises InputError naming a turn that is too long for the model. Causal language models
        drop their oldest interactions instead."""
        if self._opened.kind != "causal":
            require_fitting(rows, self._opened.tokenizer, self._opened.max_tokens, source)

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
        return CheckpointPolicy("causal", module, self._opened.tokenizer).playing(self.rollout)

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
        # Of a long conversation, only its last part counts.
        ending = sum(task.max_turns is None for task in tasks)
        before, started = self._played, time.perf_counter()
        episodes = play(
            self._policy, tasks, lambda done: self._progress.update(before + min(done, ending))
        )
        self._played += ending
        self._count(tasks, episodes, time.perf_counter() - started)
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

    def _count(self, tasks: Sequence[Task], episodes: Sequence[Episode], seconds: float) -> None:
        """The cost of a part, as all parts that are played together have the same turns."""
        parts = [task for task in tasks if task.first_turn > 1 or task.max_turns is not None]
        if parts and not parts[0].erase_memory:
            turns = sum(len(episode.answered) for episode in episodes)
            last = max(parts[0].first_turn - 1 + len(episode.answered) for episode in episodes)
            self.cost.add(last, turns, seconds)


def mrl_stage(checkpoint: Checkpoint, run: Run | None) -> int:
    """Index of the MRL stage whose rewards judge the checkpoint: the one it is from, else the
    next, else one that would follow the last."""
    if run is None:
        return 0
    stage, stages = TrainingState.of(checkpoint).stage, run.stages
    return next(
        (index for index in range(stage, len(stages)) if stages[index].needs_rollout), len(stages)
    )
