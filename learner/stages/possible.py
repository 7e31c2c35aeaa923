"""Checks of a stage's settings against the rest of the run: what it could never do is said before
anything starts."""

from __future__ import annotations

from math import inf

from common.config.algorithms import PREVIOUS_INTERACTION
from common.config.components import Component
from common.config.lm import LMRL
from common.config.mrl import HELD_OUT, MRL
from common.config.rewards import Rewards
from common.config.run import Run
from common.config.stages import SFT, MemoryAware, MemoryPretrain, Reading, StageSettings
from common.data.conversations import pairs_to_read, up_to
from common.data.corpus import Corpus
from common.failures import InputError, nearest
from common.models.reactive.config import LAST_INTERACTION, RxTConfig
from common.models.reactive.parts import Part
from reward_service.components.table import range_of
from rollout.environments.table import ENVIRONMENTS
from rollout.tasks import fitting_any

MEMORY_ATTENTION: Part = "memory_attention"


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
    if run.rewards.delayed and stage.algorithm_settings.discount == 0:
        raise InputError(
            f"{run.stage_key(run.stages.index(stage))}.{stage.algorithm}.discount",
            "is 0, so a reward that `rewards.delayed` leaves to the last answer reaches none of "
            "those before it",
        )
    require_steps_of_rewards(run)
    require_measurable(stage, run)
    require_phases(stage, run)


def require_causal_learnable(stage: LMRL, run: Run) -> None:
    """As `require_learnable`. Raises InputError, too, for settings that mean parts or memory of a
    Reactive Transformer."""
    key = run.stage_key(run.stages.index(stage))
    reads = stage.algorithm_settings.critic_input
    if reads is not None and reads != PREVIOUS_INTERACTION:
        raise InputError(
            f"{key}.{stage.algorithm}.critic",
            "is for Reactive Transformers; the value head of a causal language model reads what "
            "the policy reads (model.causal.value_head)",
        )
    if stage.unfreeze:
        raise InputError(
            f"{key}.unfreeze", "names parts of a Reactive Transformer; use model.causal.lora"
        )
    require_learnable(stage, run)


def require_steps_of_rewards(run: Run) -> None:
    """Raises InputError where a mix is for a step that no curriculum has."""
    names = [step.name for stage in run.stages for step in stage.curriculum_steps]
    for name in run.rewards.steps:
        if name not in names:
            raise InputError(
                f"rewards.steps.{name}", f"no curriculum has it; {nearest(name, names)}"
            )


def require_measurable(stage: MRL, run: Run) -> None:
    """Raises InputError where a rule of the curriculum could never hold, or nothing could be
    measured."""
    key = run.stage_key(run.stages.index(stage))
    if stage.evaluate_every and not ENVIRONMENTS[run.environment.kind].plays_rows:
        raise InputError(
            f"{key}.evaluate_every",
            f"plays held-out conversations, and environment {run.environment.kind} plays none",
        )
    highest = highest_reward(run.rewards)
    for step in stage.curriculum:
        wanted = step.until.get("objective/scores")
        if wanted is not None and wanted > highest:
            raise InputError(
                f"{key}.curriculum.{step.name}.until",
                f"objective/scores is never {wanted:g}: no mix of `rewards` pays more than "
                f"{highest:g}",
            )


def highest_reward(rewards: Rewards) -> float:
    """No answer earns more than this; infinity where a component of yours has no clip, or one is
    normalised."""
    found = []
    for mix in rewards.mixes().values():
        parts = mix.components()
        weight = sum(part.weight for part in parts.values())
        best = sum(
            _highest(name, part) * part.weight for name, part in parts.items() if part.weight
        )
        found.append(best / weight)
    return max(found) * rewards.scale


def _highest(name: str, part: Component) -> float:
    known = part.clip or range_of(name)
    return inf if part.normalise or known is None else known[1]


def require_short_enough(stage: MemoryAware, corpus: Corpus) -> None:
    """Raises InputError where every conversation is longer than the stage takes."""
    if not up_to(corpus.train, stage.max_follow_ups):
        raise InputError(
            "max_follow_ups",
            f"is {stage.max_follow_ups}, and none of {len(corpus.train)} training conversations "
            "has so few",
        )


def require_weighed_pairs(stage: SFT, corpus: Corpus) -> None:
    """Raises InputError for a weight in the decoder's loss where all interactions are of one kind:
    at 0 nothing is learnt or, as none is of that kind, nothing left out, and a weighted mean of
    what weighs alike is the mean."""
    weights = {"start_weight": stage.start_weight, "middle_weight": stage.middle_weight}
    name = next((name for name, weight in weights.items() if weight != 1), None)
    if name is None:
        return
    middle = corpus.pairs_from_the_middle()
    if len(set(middle)) == 2:
        return
    from_middle, number = all(middle), len(middle)
    if from_middle == (name == "middle_weight"):
        kind = "are from the middle of conversations" if from_middle else "begin conversations"
        found = f"all of {number} interactions {kind}"
    else:
        kind = "begins a conversation" if from_middle else "is from the middle of a conversation"
        found = f"none of {number} interactions {kind}"
    raise InputError(name, f"is {weights[name]:g}, and {found}; leave it at 1")


def require_phases(stage: StageSettings, run: Run) -> None:
    """Raises InputError for a phase of training that begins when the stage is over."""
    if not stage.is_counted:
        return  # asked again when the data are read
    for number, phase in enumerate(stage.phases):
        if phase.after is not None and phase.after >= stage.total_steps:
            key = run.stage_key(run.stages.index(stage))
            raise InputError(
                f"{key}.unfreeze.{number}.after",
                f"is {phase.after}, and the stage is over after {stage.total_steps}: the phase "
                "never begins",
            )


def _has_long_term(stage: MRL, run: Run) -> bool:
    """Whether a step of the curriculum may play long-term conversations."""
    strategies = {strategy for step in stage.curriculum for strategy in step.strategies}
    return ENVIRONMENTS[run.environment.kind].plays_rows and not strategies.isdisjoint(
        {None, "long_term"}
    )


def require_readable_by_critic(stage: MRL, shape: RxTConfig) -> None:
    """Raises InputError for an input of the critic that is longer than any there is."""
    reads, longest = stage.algorithm_settings.critic_input, 2 * shape.max_tokens
    if reads is not None and reads.max_tokens is not None and reads.max_tokens > longest:
        raise InputError(
            f"stages.{stage.stage}.{stage.algorithm}.critic.max_tokens",
            f"is {reads.max_tokens}: an interaction and a query have at most {longest} tokens, "
            "twice model.max_tokens",
        )


def require_parts(stage: MemoryAware | MRL, shape: RxTConfig) -> None:
    """Raises InputError for a phase that trains a part without parameters, which memory attention
    alone can be."""
    if shape.parameters()["memory"]:
        return
    for number, phase in enumerate(stage.phases):
        if MEMORY_ATTENTION in phase.train:
            raise InputError(
                f"stages.{stage.stage}.unfreeze.{number}.train",
                f"{MEMORY_ATTENTION} has no parameters in a model whose memory_attention is "
                f"{shape.memory_attention}",
            )


def require_trainable_by_rewards(stage: MRL, shape: RxTConfig) -> None:
    """The critic can read its input, and every phase trains something. Raises InputError."""
    require_readable_by_critic(stage, shape)
    require_parts(stage, shape)


def require_memory_attention(stage: MemoryPretrain, shape: RxTConfig) -> None:
    """Raises InputError where there is no memory attention to train."""
    if shape.memory_attention == LAST_INTERACTION:
        raise InputError(
            f"stages.{stage.stage}",
            f"trains the memory attention, and model.memory_attention is {LAST_INTERACTION}, which "
            "has none; leave the stage out",
        )


def require_pairs_to_read(stage: Reading, corpus: Corpus) -> None:
    """Raises InputError where no turn can be answered from one earlier turn."""
    if not pairs_to_read(corpus.train):
        raise InputError(
            "",
            "learns from turns that ask for what one earlier turn says, and the training "
            "conversations have none; leave the stage out, or add such conversations",
        )


def require_held_out(stage: MRL, corpus: Corpus) -> None:
    """Raises InputError where no held-out conversation fits the curriculum, or none of a step that
    waits for recall asks for a fact."""
    if not stage.evaluate_every:
        return
    if not fitting_any(corpus.eval, stage.curriculum):
        raise InputError(
            "evaluate_every",
            "measures held-out conversations that fit the curriculum, and none of "
            f"{len(corpus.eval)} does",
        )
    for step in stage.curriculum:
        rows = fitting_any(corpus.eval, [step])
        asks = any(turn.facts for row in rows for turn in row.interactions)
        if not asks and not step.until.keys().isdisjoint(HELD_OUT):
            raise InputError(
                f"curriculum.{step.name}.until",
                f"waits for recall on held-out conversations of the step, and none of {len(rows)} "
                "asks for a fact",
            )
