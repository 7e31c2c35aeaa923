"""Sizes of a run's checkpoints: bytes of one, bytes on disk, and seconds to write one.

A checkpoint holds the model and the trained modules beside it; the newest one also the state of the
optimisers. Weights that a stage leaves as they are (a reference, what lies under adapters) are
written once. On disk, one more than are kept counts, with its optimisers: older ones are removed
when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, cast

from common.config.mrl import MRL
from common.config.run import Run
from common.storage.run_directory import RunDirectory
from deploy.causal_memory import value_head_parameters
from deploy.causal_shape import CausalShape
from deploy.layout import table
from learner.stages.planning import FLOAT_BYTES, OPTIMIZER_FLOATS, StagePlan, Stored

ASSUMED_RATE = 100e6
"""Bytes per second, where nothing can be written to find out: behind a URI, or in a folder that may
not be written to."""
SAMPLE_BYTES = 32 << 20


class Rate(NamedTuple):
    """How fast checkpoints are written."""

    bytes_per_second: float
    where: str
    """The folder that it was measured in; empty: it is assumed."""

    def __str__(self) -> str:
        told = f"measured in {self.where}" if self.where else "assumed"
        return f"{self.bytes_per_second / 1e6:,.0f} MB/s, {told}"


class Sizes(NamedTuple):
    """Bytes of the checkpoints of a stage."""

    model: int
    beside: int
    optimiser: int
    once: int
    kept: int
    """Number of checkpoints."""

    @property
    def one(self) -> int:
        """Bytes of the newest checkpoint."""
        return self.model + self.beside + self.optimiser

    @property
    def on_disk(self) -> int:
        """While one is written, at most."""
        older = self.kept * (self.model + self.beside) + self.optimiser
        return self.one + older + self.once


def checkpoint_sizes(run: Run, plans: Sequence[StagePlan]) -> dict[str, Sizes]:
    """By name of the stage; without stages whose models are not worked out."""
    found = {}
    for index, (stage, plan) in enumerate(zip(run.stages, plans, strict=True)):
        if plan.stored is None:
            continue
        held = plan.stored
        measures = stage.needs_rollout and cast(MRL, stage).evaluate_every > 0
        found[run.stage_key(index)] = Sizes(
            FLOAT_BYTES * held.model,
            FLOAT_BYTES * held.beside,
            FLOAT_BYTES * held.moments,
            FLOAT_BYTES * held.once,
            run.learner.keep_checkpoints + measures,  # the best one, too
        )
    return found


def causal_stored(run: Run, index: int, shape: CausalShape) -> Stored:
    """Contents of the checkpoints of a stage of a causal language model. With adapters, the model
    has them merged in, and what lies under them is written once."""
    assert run.model.causal is not None, "of a causal policy"
    stage, adapted = run.stages[index], run.model.causal.lora is not None
    critic = 0
    if stage.needs_rollout and cast(MRL, stage).algorithm_settings.critic_input is not None:
        critic = value_head_parameters(run, shape)
    return Stored(
        shape.total,
        beside=critic + (shape.trained if adapted else 0),
        moments=OPTIMIZER_FLOATS * (shape.trained + critic),
        # A reference keeps copies of what is trained, and shares the rest.
        once=shape.total if adapted else shape.trained if stage.needs_rollout else 0,
    )


def write_rate(run: Run) -> Rate:
    """Measured in the folder that the run's folder would be made in, or assumed behind a URI."""
    local = RunDirectory(run.runs, run.name).local
    if local is None:
        return Rate(ASSUMED_RATE, "")
    return _measured(next((each for each in local.parents if each.is_dir()), Path("/")))


@cache  # the parts of a plan tell the same
def _measured(folder: Path) -> Rate:
    """By a file that has no name in the folder; takes a second or less."""
    block = os.urandom(SAMPLE_BYTES)
    try:
        times = [_seconds(block, folder) for _ in range(2)]
    except OSError:
        return Rate(ASSUMED_RATE, "")
    return Rate(SAMPLE_BYTES / fmean(times), str(folder))


def _seconds(block: bytes, folder: Path) -> float:
    """To write a block as a checkpoint is written: with its hash, and until it is durable."""
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(block)
        file.seek(0)
        hashlib.blake2b(file.read(), digest_size=16)
        os.fsync(file.fileno())
        return time.perf_counter() - began


def checkpoint_table(sizes: dict[str, Sizes], rate: Rate) -> str:
    """A row for each stage."""
    header = ["stage", "model", "beside it", "optimiser", "once", "kept", "on disk ≤", "seconds"]
    rows = [
        [
            name,
            *(f"{size / 2**20:,.1f}" for size in (each.model, each.beside)),
            *(f"{size / 2**20:,.1f}" for size in (each.optimiser, each.once)),
            str(each.kept),
            f"{each.on_disk / 2**20:,.1f}",
            f"{each.one / rate.bytes_per_second:,.1f}",
        ]
        for name, each in sizes.items()
    ]
    title = "Checkpoints, MiB (optimiser: in the newest one alone; once: one file of the run); "
    return table(f"{title}written at {rate}", header, rows)


def checkpoint_line(sizes: dict[str, Sizes], rate: Rate) -> str:
    """The largest of all stages, in words."""
    one = max(each.one for each in sizes.values())
    disk = max(each.on_disk for each in sizes.values())
    return (
        f"checkpoints: {one / 2**20:,.1f} MiB the newest, {disk / 2**20:,.1f} MiB on disk at most, "
        f"{one / rate.bytes_per_second:,.1f} s to write one ({rate})"
    )
