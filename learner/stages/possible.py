"""Checks of a stage's settings against the rest of the run: what it could never do is said before
anything starts."""

from __future__ import annotations

from common.config.mrl import MRL
from common.config.run import Run
from common.config.stages import Reading, StageSettings
from common.data.conversations import pairs_to_read
from common.data.corpus import Corpus
from common.failures import InputError


def require_learnable(stage: MRL, run: Run) -> None:
    """Raises InputError for sampling that MRL cannot learn from: it learns from the very
    distribution it samples, and a filter would make the recorded log-probs those of another
    one."""
    sampling = run.rollout.sampling
    if sampling.temperature == 0:
        raise InputError(
            "rollout.sampling.temperature",
            "is 0: greedy answers explore nothing, and have no distribution to learn from",
        )
    for key, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        if getattr(sampling, key) != off:
            raise InputError(
                f"rollout.sampling.{key}",
                f"must be {off} in MRL, so that what is learnt from is what was sampled",
            )
    require_phases(stage, run)


def require_phases(stage: StageSettings, run: Run) -> None:
    """Raises InputError for a phase of training that begins when the stage is over."""
    for number, phase in enumerate(stage.phases):
        if phase.after is not None and phase.after >= stage.total_steps:
            key = run.stage_key(run.stages.index(stage))
            raise InputError(
                f"{key}.unfreeze.{number}.after",
                f"is {phase.after}, and the stage is over after {stage.total_steps}: the phase "
                "never begins",
            )


def require_pairs_to_read(stage: Reading, corpus: Corpus) -> None:
    """Raises InputError where no turn can be answered from the one before."""
    if not any(map(pairs_to_read, corpus.train)):
        raise InputError(
            "",
            "learns from turns that ask for a fact which the turn before says, and the training "
            "conversations have none; leave the stage out, or add such conversations",
        )
