"""The stages of training, one row each: what runs a stage, what it learns from, and how a plan
describes it.

A new stage is a section of settings in `common/config/stages.py`, a file beside this one, and a row
here. What follows from its settings alone (number of steps, whether it needs rollout workers) they
say themselves. Nothing else asks which stage it has before it.

Torch and Ray are imported when a stage begins, so that `engram plan` reads this table at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.lm import LMRL, LMSFT, LMText
from common.config.mrl import MRL
from common.config.reward_stage import RewardModelStage
from common.config.run import Run
from common.config.stages import (
    SFT,
    JointLM,
    MemoryAware,
    MemoryPretrain,
    Reading,
    StageSettings,
)
from common.data.conversations import pairs_to_read, up_to
from common.episode import Interaction
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from learner.curriculum import Curriculum
from learner.stages import planning
from learner.stages.planning import StagePlan
from learner.stages.possible import (
    require_causal_learnable,
    require_held_out,
    require_learnable,
    require_memory_attention,
    require_pairs_to_read,
    require_parts,
    require_phases,
    require_short_enough,
    require_trainable_by_rewards,
    require_weighed_pairs,
)
from learner.unfreezing import require_begun

if TYPE_CHECKING:
    from torch import nn

    from common.data.corpus import Corpus
    from common.models.reactive.model import ReactiveTransformer
    from common.storage.checkpoint import Checkpoint
    from learner.parallel.group import Group, Job
    from learner.stages.epochs import Pieces
    from learner.stages.supervised import Objective
    from learner.training_state import TrainingState

WriteTokenizer = Callable[[Path], None]
"""Writes the tokenizer of a model into a folder."""
MakeObjective = Callable[
    [Any, "Corpus", "Checkpoint", int, int], tuple["Objective", WriteTokenizer]
]
"""From settings, corpus, the checkpoint to start from, steps done in the stage, and seed."""


def _no_requirement(settings: Any, policy: ReactiveTransformer) -> None:
    """Any policy will do."""


def _any_shape(settings: Any, shape: RxTConfig) -> None:
    """Any policy will do."""


def _any_data(settings: Any, corpus: Corpus) -> None:
    """Whatever there is."""


def _always_possible(settings: Any, run: Run) -> None:
    """The rest of the configuration does not matter to it."""


def _always_resumable(settings: Any, state: TrainingState) -> None:
    """The step is all there is to its position."""


@dataclass(frozen=True)
class StageDefinition:
    """One row of `STAGES`."""

    settings: type[StageSettings]
    loop: Callable[[Group, Job, Any], None]
    """Runs on every learner rank, from the newest checkpoint to the end of the stage."""
    data: tuple[str, ...]
    """Parts of `Corpus` that it learns from; none of them may be empty."""
    plan: Callable[[Any, Run, RxTConfig], StagePlan]
    """Work and needs of the stage, for a model of this shape."""
    objective: MakeObjective | None = None
    """Objective of a stage whose loop is the supervised one."""
    count: Callable[[Any, Corpus, Pieces], int] | None = None
    """Examples of the objective, of which `epochs` are passes; None: as many as the first part of
    `data` has."""
    pairs: Callable[[Corpus], list[tuple[Interaction, Interaction]]] | None = None
    """Two turns of a conversation each, which it learns from in place of all of them; None: it
    learns from whole examples."""
    require_possible: Callable[[Any, Run], None] = _always_possible
    """Raises InputError where the settings and the rest of the configuration rule each other
    out."""
    require_data: Callable[[Any, Corpus], None] = _any_data
    """Raises InputError where the data have nothing that the stage learns from, beside `data`."""
    require_shape: Callable[[Any, RxTConfig], None] = _any_shape
    """Raises InputError where the settings do not fit the shape of the policy that the run begins
    with."""
    require_fit: Callable[[Any, ReactiveTransformer], None] = _no_requirement
    """The same for what its shape does not say."""
    require_resumable: Callable[[Any, TrainingState], None] = _always_resumable
    """Raises InputError where a checkpoint's state, inside the stage, does not fit the settings."""
    first_model: Callable[[Any, int], tuple[nn.Module, WriteTokenizer]] | None = None
    """The model that stands in `own_model` of the settings, with new modules drawn by the run's
    seed."""
    own_plan: Callable[[Any, Run], StagePlan] | None = None
    """As `plan`, where the settings bring a model of their own."""


def definition_of(settings: StageSettings) -> StageDefinition:
    return STAGES[type(settings)]


# --- what the rows refer to -----------------------------------------------------------------------


def _supervised(group: Group, job: Job, recorder: Any) -> None:
    from learner.stages.supervised import supervised_loop

    supervised_loop(group, job, recorder)


def _mrl(group: Group, job: Job, recorder: Any) -> None:
    from learner.stages.rl import mrl_loop

    mrl_loop(group, job, recorder)


def _joint_lm(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.joint_lm import text_objective

    return text_objective(*arguments)


def _sft(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.joint_lm import pair_objective

    return pair_objective(*arguments)


def _lm_text(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.causal_lm import text_objective

    return text_objective(*arguments)


def _lm_sft(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.causal_lm import answer_objective

    return answer_objective(*arguments)


def _memory_pretrain(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.memory_pretrain import write_objective

    return write_objective(*arguments)


def _reading(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.reading import reading_objective

    return reading_objective(*arguments)


def _memory_aware(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.memory_aware import conversation_objective

    return conversation_objective(*arguments)


def _reward_model(*arguments: Any) -> tuple[Objective, WriteTokenizer]:
    from learner.stages.reward_model import preference_objective

    return preference_objective(*arguments)


def _require_adaptable(settings: RewardModelStage, policy: ReactiveTransformer) -> None:
    from learner.stages.reward_model import require_adaptable

    require_adaptable(settings, policy)


def _backbone(settings: RewardModelStage, seed: int) -> tuple[nn.Module, WriteTokenizer]:
    from learner.stages.reward_model import backbone

    return backbone(settings, seed)


def _pieces(settings: StageSettings, corpus: Corpus, pieces: Pieces) -> int:
    return pieces.of_texts(corpus)


def _answers(settings: LMSFT, corpus: Corpus, pieces: Pieces) -> int:
    return (
        pieces.of_conversations(corpus)
        if settings.examples == "conversations"
        else len(corpus.pairs)
    )


def _pairs_to_read(corpus: Corpus) -> list[tuple[Interaction, Interaction]]:
    return pairs_to_read(corpus.train)


def _read_pairs(settings: Reading, corpus: Corpus, pieces: Pieces) -> int:
    return len(_pairs_to_read(corpus))


def _conversations(settings: MemoryAware, corpus: Corpus, pieces: Pieces) -> int:
    return len(up_to(corpus.train, settings.max_follow_ups))


def _require_phases_left(settings: MemoryAware, state: TrainingState) -> None:
    """Phases that have begun cannot be taken back."""
    require_begun(settings.phases, state.phases)


def _require_same_beginning(settings: JointLM, state: TrainingState) -> None:
    """A decoder that has learnt beside the encoder does not learn alone again."""
    alone = state.done == 0 or state.phases == 1
    if state.done < settings.decoder_only_steps and not alone:
        raise InputError(
            "decoder_only_steps",
            f"is {settings.decoder_only_steps}, and after {state.done} steps the encoder has begun "
            "to learn; put it back to what it was",
        )


def _require_same_position(settings: MRL, state: TrainingState) -> None:
    """Steps of a curriculum that have begun cannot move, nor phases that have begun be taken
    back."""
    require_begun(settings.phases, state.phases)
    if state.rl is not None:
        Curriculum(settings.curriculum).load(state.rl.curriculum)


STAGES: dict[type[StageSettings], StageDefinition] = {
    row.settings: row
    for row in (
        StageDefinition(
            JointLM,
            _supervised,
            ("texts",),
            planning.joint_lm,
            _joint_lm,
            count=_pieces,
            require_resumable=_require_same_beginning,
        ),
        StageDefinition(
            SFT,
            _supervised,
            ("pairs",),
            planning.joint_lm,
            _sft,
            require_data=require_weighed_pairs,
            require_resumable=_require_same_beginning,
        ),
        StageDefinition(
            MemoryPretrain,
            _supervised,
            ("train",),
            planning.writes,
            _memory_pretrain,
            require_shape=require_memory_attention,
        ),
        StageDefinition(
            Reading,
            _supervised,
            ("train",),
            planning.sequences,
            _reading,
            count=_read_pairs,
            pairs=_pairs_to_read,
            require_data=require_pairs_to_read,
        ),
        StageDefinition(
            MemoryAware,
            _supervised,
            ("train",),
            planning.conversations,
            _memory_aware,
            count=_conversations,
            require_data=require_short_enough,
            require_possible=require_phases,
            require_shape=require_parts,
            require_resumable=_require_phases_left,
        ),
        StageDefinition(
            RewardModelStage,
            _supervised,
            ("preferences", "held_preferences"),
            planning.reward_model,
            _reward_model,
            require_fit=_require_adaptable,
            first_model=_backbone,
            own_plan=planning.backbone,
        ),
        StageDefinition(
            MRL,
            _mrl,
            ("train",),
            planning.mrl,
            require_possible=require_learnable,
            require_data=require_held_out,
            require_resumable=_require_same_position,
            require_shape=require_trainable_by_rewards,
        ),
        StageDefinition(
            LMText, _supervised, ("texts",), planning.sequences, _lm_text, count=_pieces
        ),
        StageDefinition(
            LMSFT, _supervised, ("pairs",), planning.sequences, _lm_sft, count=_answers
        ),
        StageDefinition(
            LMRL,
            _mrl,
            ("train",),
            planning.lm_rl,
            require_possible=require_causal_learnable,
            require_data=require_held_out,
            require_resumable=_require_same_position,
        ),
    )
}
"""By the class of a stage's settings."""
