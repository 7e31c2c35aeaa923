"""Requirements that a run must meet before anything of it starts: `engram plan`, `train` and
`submit` ask for the same ones.

What follows from the configuration alone is one function, what the data decide another. Here no
file is written and no actor is started.
"""

from __future__ import annotations

import os
from pathlib import Path

from common.config.mrl import CurriculumStep
from common.config.run import Run
from common.data.corpus import Corpus
from common.failures import InputError, nearest
from common.models.reactive.config import named_config
from common.models.vllm_release import require_vllm
from common.storage.run_directory import require_folder_name
from learner.stages.stage import definition_of
from rollout.environments.table import ENVIRONMENTS
from rollout.tasks import fitting, own_selections

LONGEST_PART = 255
"""Bytes of one part of a path on the file systems that there are."""


def require_possible(run: Run) -> None:
    """Raises InputError naming the first setting that the run could never use. Reads no data."""
    require_folder_name(run.name)
    require_place(run.runs)
    if not run.stages:
        raise InputError("stages", "is empty: a run has one stage at least")
    require_work_for_every_rank(run)
    if run.needs_rollout and run.rollout.backend == "vllm":
        require_vllm("rollout.backend")
    for index, stage in enumerate(run.stages):
        definition_of(stage).require_possible(stage, run)
        for step in stage.curriculum_steps if plays_rows(run) else ():
            if step.max_steps < (run.data.shortest or 0):
                raise InputError(
                    f"{run.stage_key(index)}.curriculum.{step.name}.max_steps",
                    f"is {step.max_steps}, and the shortest conversation of the data has "
                    f"{run.data.shortest} follow-ups: none takes part",
                )
    if run.model.kind != "reactive":
        return
    if run.model.checkpoint is None and all(stage.own_model is None for stage in run.stages):
        dimensions = run.model.dimensions
        shape = named_config(run.model.size, vocab_size=run.tokenizer.vocab_size, **dimensions)
        for stage in run.stages:
            definition_of(stage).require_shape(stage, shape)


def plays_rows(run: Run) -> bool:
    """Whether the run's environment plays conversations of the data."""
    return ENVIRONMENTS[run.environment.kind].plays_rows


def require_place(runs: str) -> None:
    """Raises InputError where no folder can be made at `runs`. A folder that is not there yet may
    be made, here or on the cluster, and a URI is for its own store to say."""
    if "://" in runs:
        return
    part = next((part for part in Path(runs).parts if len(os.fsencode(part)) > LONGEST_PART), None)
    if part is not None:
        raise InputError("runs", f"{part[:40]!r}… is too long for the name of a folder")
    there = next(path for path in (Path(runs), *Path(runs).parents) if os.path.exists(path))
    if not os.path.isdir(there):
        raise InputError("runs", f"{runs} cannot be a folder: {there} is a file")


def require_work_for_every_rank(run: Run) -> None:
    """Raises InputError where a batch has fewer examples than there are ranks."""
    for index, stage in enumerate(run.stages):
        if stage.batch < run.learner.ranks:
            raise InputError(
                f"{run.stage_key(index)}.{stage.batch_key}",
                f"is {stage.batch}, which leaves some of {run.learner.ranks} learner ranks nothing "
                "to do",
            )


def require_sources(step: CurriculumStep, corpus: Corpus, where: str) -> None:
    """Raises InputError where a curriculum step names a source that the data do not have."""
    known = {row.source for row in (*corpus.train, *corpus.eval)} - {""}
    for source in step.sources:
        if source not in known:
            which = nearest(source, known) if known else "the data have one source alone"
            raise InputError(f"{where}.sources", f"{source!r} is not in the data; {which}")


def require_data(run: Run, corpus: Corpus) -> None:
    """Raises InputError where a stage has nothing to learn from: no data of its kind, or no
    conversation that fits a step of its curriculum."""
    for index, stage in enumerate(run.stages):
        for part in definition_of(stage).data:
            if not getattr(corpus, part):
                raise InputError(
                    run.stage_key(index), f"learns from {part!r}, and the data have none"
                )
        try:
            definition_of(stage).require_data(stage, corpus)
        except InputError as nothing:
            where = ".".join(filter(None, (run.stage_key(index), nothing.where)))
            raise InputError(where, nothing.what) from None
        for step in stage.curriculum_steps if plays_rows(run) else ():
            require_sources(step, corpus, f"{run.stage_key(index)}.curriculum.{step.name}")
            try:
                for selection in own_selections(step):
                    fitting(corpus.train, step.name, selection)
            except InputError as none:
                where = f"{run.stage_key(index)}.curriculum.{step.name}"
                raise InputError(where, none.what) from None
