"""Stages of a run that the same learner ranks do one after the other.

Starting a group of ranks takes many seconds: each is a process that imports torch and joins the
others. Supervised stages need nothing but ranks, so those in a row share a group. Each begins from
the checkpoint that the one before it left, as it would in a group of its own.
"""

from __future__ import annotations

import torch

from common.config.stages import StageSettings
from common.storage.checkpoint import Checkpoint, latest_checkpoint
from learner.parallel.group import Group, Job
from learner.recorder import Recorder, RecorderClient
from learner.stages.stage import definition_of
from learner.training_state import TrainingState


def run_stages(group: Group, job: Job, recorder: Recorder | RecorderClient) -> None:
    """Every stage of `job` from where the last checkpoint left it, until the end of the last one
    or a requested stop. Runs on every rank."""
    for part in job.parts():
        stage = part.run.stages[part.stage]
        if not is_finished(_newest(part), part.stage, stage):
            definition_of(stage).loop(group, part, recorder)
        if not is_finished(_newest(part), part.stage, stage) or _is_asked_to_stop(group, recorder):
            return


def is_finished(checkpoint: Checkpoint, index: int, stage: StageSettings) -> bool:
    """Whether the run had finished stage number `index` when the checkpoint was written."""
    state = TrainingState.of(checkpoint)
    done = state.ended or state.done >= stage.total_steps
    return state.stage > index or (state.stage == index and done)


def _newest(job: Job) -> Checkpoint:
    checkpoint = latest_checkpoint(job.directory)
    assert checkpoint is not None, "the driver writes a checkpoint before the first stage"
    return checkpoint


def _is_asked_to_stop(group: Group, recorder: Recorder | RecorderClient) -> bool:
    """Whether the driver asked to stop during the last step of a stage: the same on all ranks."""
    asked = group.rank == 0 and recorder.stop_requested()
    return bool(group.max(torch.tensor(float(asked), device=group.device)) > 0)
