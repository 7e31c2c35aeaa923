"""Before a run goes on: what of it is there must be whole, and its data those that it was started
with.

All of it is looked at in the driver, before any actor starts and before anything is written, so
that damage is one sentence and costs nothing more.
"""

from __future__ import annotations

import json

from common.config.locations import named_alike
from common.config.run import Run
from common.data.corpus import Corpus
from common.data.datasets.table import load_corpus
from common.data.fingerprint import Part, fingerprint, from_json, require_same_data, to_json
from common.failures import InputError
from common.storage.checkpoint import Checkpoint, damage_after, has_saved, latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import Progress
from learner.evaluation.measure import VALUES, training_values
from learner.summary import SUMMARY, read_summary
from reward_service.contents import contents
from reward_service.pins import pinned
from rollout.journal.journal import require_whole

DATA = "data.json"
"""The fingerprint of the data that the run was started with."""
REWARDS = "reward_sources.json"
"""File with the digests of the rewards' functions and models when the run last started."""


def as_named_in(run: Run, before: Run) -> Run:
    """The run's configuration so far, with files named as `run` names them where both may mean the
    same."""
    return Run.model_validate(
        named_alike(before.model_dump(mode="json"), run.model_dump(mode="json"))
    )


def with_pinned_models(run: Run, directory: RunDirectory) -> Run:
    """The run with the models of its rewards pinned to the versions that it was started with, or
    that are there now (`reward_service/pins.py`)."""
    before = as_named_in(run, directory.run()) if directory.exists("config.yaml") else None
    return run.model_copy(
        update={"rewards": pinned(run.rewards, before.rewards if before is not None else None)}
    )


def with_moved_data(before: Run, run: Run) -> Run:
    """`before` with the files of the data where `run` says they are: their fingerprint tells
    whether they are the same."""
    then, now = before.model_dump(mode="json"), run.model_dump(mode="json")
    data = named_alike(
        then["data"], now["data"], lambda old, new: old.startswith("/") and new.startswith("/")
    )
    return Run.model_validate(then | {"data": data})


def checkpoint_to_resume(directory: RunDirectory, progress: Progress) -> Checkpoint | None:
    """The run's newest whole checkpoint; None for a run that has not got further than its setup.

    Raises InputError for one that has, and has no whole checkpoint left: to begin anew would
    overwrite what is there of it.
    """
    checkpoint = latest_checkpoint(directory)
    damage = damage_after(directory, checkpoint)
    others = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
    if checkpoint is None and (has_saved(directory) or read_rows(directory)):
        what = f"{damage[0].what}{others}" if damage else "holds no checkpoint any more"
        raise InputError(
            damage[0].where if damage else directory.path("checkpoints"),
            f"{what}; the run {directory.name} has been trained and no checkpoint of it is "
            "whole: put the files back, or begin anew under "
            f"another name, or after removing {directory.path()}",
        )
    if damage:
        going_on = (
            f"going on from step {checkpoint.step}"
            if checkpoint
            else "the run had not begun to train, and is set up anew"
        )
        progress.note(f"damaged checkpoint {damage[0].where}: {damage[0].what}{others}; {going_on}")
    return checkpoint


def require_run_data(parts: list[Part], directory: RunDirectory) -> None:
    """Raises InputError where the data are not those that the run was started with. A run without a
    fingerprint gets this one."""
    then = run_data(directory)
    if then is None:
        directory.write_json(DATA, to_json(parts))
    else:
        require_same_data(parts, then, directory.path())


def run_data(directory: RunDirectory) -> list[Part] | None:
    """The fingerprint of the data that the run was started with, None where it has none. InputError
    where the file is damaged."""
    if not directory.exists(DATA):
        return None
    try:
        return from_json(json.loads(directory.read_text(DATA)))
    except ValueError as broken:
        raise InputError(
            directory.path(DATA),
            f"is damaged ({broken}); put it back, or remove it where you are sure that the data "
            "are as they were",
        ) from broken


def run_corpus(run: Run, directory: RunDirectory) -> Corpus:
    """The corpus of a run, read anew. InputError where it is not the one that the run was started
    with."""
    corpus = load_corpus(run.data, run.seed)
    require_run_data(fingerprint(corpus.sources), directory)
    return corpus


def evaluated_corpus(run: Run, directory: RunDirectory) -> Corpus:
    """The same for `engram eval`, which may read a run while it goes on and writes nothing into
    it."""
    corpus = load_corpus(run.data, run.seed)
    then = run_data(directory)
    if then is not None:
        require_same_data(
            fingerprint(corpus.sources),
            then,
            directory.path(),
            "name what to evaluate on with --data",
        )
    return corpus


def tell_of_changed_rewards(run: Run, directory: RunDirectory, progress: Progress) -> None:
    """Say which functions and models of the rewards hold something else than when the run last
    started; keep what they hold now.

    They may change, as the settings of rewards may, but not without a word: rewards before and
    after are two measures.
    """
    now = contents(run.rewards)
    then = {}
    if directory.exists(REWARDS):
        try:
            then = {
                key: (path, digest)
                for key, (path, digest) in json.loads(directory.read_text(REWARDS)).items()
            }
        except (ValueError, TypeError, AttributeError):
            progress.note(
                f"{directory.path(REWARDS)} is damaged: whether functions and models of the "
                "rewards changed cannot be told"
            )
    for key, (path, digest) in now.items():
        if key in then and then[key][0] == path and then[key][1] != digest:
            progress.note(
                f"rewards.{key}: {path} holds something else than when the run last started; "
                "rewards from here on are another measure"
            )
    if now or then:
        directory.write_json(REWARDS, now)


def require_whole_records(directory: RunDirectory) -> None:
    """Raises InputError where something else that a resume reads is damaged: here, and not in an
    actor that has just started."""
    read_rows(directory)
    if directory.exists(SUMMARY):
        read_summary(directory)
    if directory.exists(VALUES):
        training_values(directory)
    if directory.local is not None:
        require_whole(directory.local)


def require_config(before: Run | None, directory: RunDirectory) -> Run:
    """The configuration so far of a run that has checkpoints. InputError where it is gone."""
    if before is None:
        raise InputError(
            directory.path("config.yaml"),
            f"is missing, so nothing says what the run in {directory.path()} was started with; "
            "put it back (configs/ beside it may hold "
            "earlier ones), or choose another name",
        )
    return before
