"""Checks of a stage's settings against the rest of the run: what it could never do is said before
anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.config.mrl import MRL
from common.config.run import Run
from common.config.stages import Reading
from common.data.conversations import pairs_to_read
from common.data.corpus import Corpus
from common.failures import InputError
from rollout.environments.table import ENVIRONMENTS

if TYPE_CHECKING:
    from common.models.reactive.model import ReactiveTransformer


def require_learnable(stage: MRL, run: Run) -> None:
    """Raises InputError for sampling that MRL cannot learn from: it learns from the very
    distribution it samples, and a filter would make the recorded log-probs those of another
    one. And for a critic that is to read what no episode has."""
    reads = stage.algorithm_settings.critic_input
    if reads is not None and reads.opening and not _has_long_term(stage, run):
        raise InputError(
            f"{run.stage_key(run.stages.index(stage))}.{stage.algorithm}.critic.opening",
            "is for the last turn of long_term conversations, and no step of the curriculum plays "
            "any",
        )
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


def _has_long_term(stage: MRL, run: Run) -> bool:
    """Whether a step of the curriculum may play long-term conversations."""
    strategies = {step.strategy for step in stage.curriculum}
    return ENVIRONMENTS[run.environment.kind].plays_rows and not strategies.isdisjoint(
        {None, "long_term"}
    )


def require_readable_by_critic(stage: MRL, policy: ReactiveTransformer) -> None:
    """Raises InputError for an input of the critic that is longer than any there is."""
    reads, longest = stage.algorithm_settings.critic_input, 2 * policy.config.max_tokens
    if reads is not None and reads.max_tokens is not None and reads.max_tokens > longest:
        raise InputError(
            f"stages.{stage.stage}.{stage.algorithm}.critic.max_tokens",
            f"is {reads.max_tokens}: an interaction and a query have at most {longest} tokens, "
            "twice model.max_tokens",
        )


def require_pairs_to_read(stage: Reading, corpus: Corpus) -> None:
    """Raises InputError where no turn can be answered from the one before."""
    if not any(map(pairs_to_read, corpus.train)):
        raise InputError(
            "",
            "learns from turns that ask for a fact which the turn before says, and the training "
            "conversations have none; leave the stage out, or add such conversations",
        )
