"""A run that goes on under another configuration: what may not change, and what did."""

from __future__ import annotations

import re

from common.config.changes import Change, changes, described
from common.config.run import Run
from common.config.stages import MRL, RewardModelStage
from common.failures import InputError
from common.storage.checkpoint import Checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import Progress
from learner.curriculum import Curriculum, stage_steps

FIXED = ("seed", "data", "tokenizer", "model")
"""Sections that decide the data and the shape of the model."""
FIXED_OF_A_REWARD_MODEL = ("backbone", "levels", "lora")
_OF_A_STAGE = re.compile(r"stages\.(?P<index>\d+)\.(?P<key>\w+)")


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
    if change.key.partition(".")[0] in FIXED:
        return True
    of_a_stage = _OF_A_STAGE.match(change.key)
    if of_a_stage is None:
        return False
    reward_model = isinstance(run.stages[int(of_a_stage["index"])], RewardModelStage)
    return of_a_stage["key"] == "stage" or (
        reward_model and of_a_stage["key"] in FIXED_OF_A_REWARD_MODEL
    )


def require_same_curriculum(run: Run, checkpoint: Checkpoint) -> None:
    """Steps of a curriculum that have begun cannot move: found here, before anything is written."""
    index = checkpoint.state["stage"]
    stage = run.stages[index] if index < len(run.stages) else None
    done = checkpoint.state["done"]
    if isinstance(stage, MRL) and "curriculum" in checkpoint.state and done < stage_steps(stage):
        try:
            Curriculum(stage.curriculum).load_state_dict(checkpoint.state["curriculum"])
        except InputError as moved:
            raise InputError(f"stages.{index}.{moved.where}", moved.what) from None


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
    """What to add where the setting is of a stage that is over."""
    of_a_stage = _OF_A_STAGE.match(change.key)
    index = int(of_a_stage["index"]) if of_a_stage else -1
    at, done = checkpoint.state["stage"], checkpoint.state["done"]
    if 0 <= index < at:
        return ": that stage is over and stays as it is"
    if index == at < len(run.stages) and done >= stage_steps(run.stages[at]):
        return f": {done} steps of that stage are done, so it is over"
    return ""
