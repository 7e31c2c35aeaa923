"""A run that goes on under another configuration: what may not change, and what did."""

from __future__ import annotations

from common.config.changes import Change, changes, described
from common.config.run import Run
from common.failures import InputError
from common.storage.checkpoint import Checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import Progress
from learner.stages.stage import definition_of
from learner.training_state import TrainingState

FIXED = ("seed", "data", "tokenizer", "model")
"""Sections that decide the data and the shape of the model; of the data, all settings but those
that only refuse some."""


def require_same(run: Run, before: Run, directory: RunDirectory) -> None:
    """Raises InputError naming the first setting that must be as it was and is not."""
    for change in changes(before, run):
        if is_fixed(change, run):
            raise InputError(
                change.key,
                f"is {described(change.now)}, the run in {directory.path()} was started with "
                f"{described(change.before)}; choose another name, or put it back",
            )


def is_fixed(change: Change, run: Run) -> bool:
    if change.place[0] in FIXED:
        return change.place not in {("data", name) for name in run.data.refusing}
    index = _stage(change)
    if index is None:
        return False
    place = change.place[2:]
    parents = {".".join(map(str, place[:depth])) for depth in range(1, len(place) + 1)}
    return not parents.isdisjoint(run.stages[index].fixed)


def _stage(change: Change) -> int | None:
    """Index of the stage that a setting belongs to; None for others, and for a stage as a whole."""
    of_a_stage = change.place[0] == "stages" and len(change.place) > 2
    return int(change.place[1]) if of_a_stage else None


def require_resumable(run: Run, checkpoint: Checkpoint) -> None:
    """Raises InputError where the stage that goes on cannot go on from this state under its
    settings: found here, before anything is written."""
    state = TrainingState.of(checkpoint)
    index, stage = state.stage, run.stages[state.stage] if state.stage < len(run.stages) else None
    if stage is not None and state.done < stage.total_steps:
        try:
            definition_of(stage).require_resumable(stage, state)
        except InputError as moved:
            raise InputError(f"{run.stage_key(index)}.{moved.where}", moved.what) from None


def go_on_with(
    run: Run, before: Run, directory: RunDirectory, checkpoint: Checkpoint, progress: Progress
) -> None:
    """Write the run's new configuration; where it differs, keep the one before and say what
    changed."""
    found = changes(before, run)
    if found:
        kept = directory.keep_config(checkpoint.step)
        progress.note(f"settings changed at step {checkpoint.step}; the earlier ones are in {kept}")
        for change in found:
            progress.note(f"  {change}{_too_late(change, run, checkpoint)}")
    directory.write_config(run)


def _too_late(change: Change, run: Run, checkpoint: Checkpoint) -> str:
    """Sentence to add where the setting belongs to a stage that is over."""
    index = _stage(change)
    state = TrainingState.of(checkpoint)
    at, done = state.stage, state.done
    if index is None:
        return ""
    if index < at:
        return ": that stage is over and stays as it is"
    if index == at < len(run.stages) and done >= run.stages[at].total_steps:
        return f": {done} steps of that stage are done, so it is over"
    return ""
