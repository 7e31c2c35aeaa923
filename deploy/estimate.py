"""A rough estimate of a run's time, from its tokens and the arithmetic of this machine.

Training takes 6 operations per parameter and token; an iteration of MRL (generation, reference,
critic, update) takes about 12. Small products of a training step reach about a third of the rate of
a plain matrix product, which is measured here in CPU time, so other processes do not distort it.
Against the demo on two cores, stages take 0.8 to 1.4 times the estimate. GPUs are not estimated:
their rate is not known without trying them.
"""

from __future__ import annotations

import os
import time
from statistics import median

import numpy as np

from common.config.run import Run
from common.config.stages import StageSettings
from common.models.reactive.config import RxTConfig

START_SECONDS = 15.0
"""Seconds that a stage takes to start its actors and to write its last checkpoint."""
REACHED = 1 / 3
"""Share of the rate of a matrix product that training reaches."""
SUPERVISED, REINFORCED = 6, 12
"""Operations per parameter and token."""


def operations_per_second() -> float:
    """Rate of one core in a float32 matrix product; takes some hundredths of a second."""
    left, right = np.ones((1024, 64), np.float32), np.ones((64, 256), np.float32)
    work, times = 2 * left.size * right.shape[1], []
    for _ in range(9):
        began = time.thread_time()
        for _ in range(4):
            left @ right
        times.append((time.thread_time() - began) / 4)
    return work / median(times)


def stage_seconds(
    run: Run,
    stage: StageSettings,
    config: RxTConfig,
    tokens: float,
    rate: float,
    starts: bool = True,
) -> float | None:
    """Seconds that a stage may take on this machine; None where it runs on GPUs.

    tokens: that it reads or plays. rate: operations per second of one core. starts:
    False where nothing is started for it: the stage follows another one on the same ranks, or
    this is a further step of its curriculum.
    """
    if run.learner.gpus_per_rank or run.rollout.gpus_per_worker:
        return None
    counts = config.parameters()
    parameters = counts["total"] - counts["embedding"]
    cores = min(run.learner.ranks * run.learner.threads, len(os.sched_getaffinity(0)))
    operations = (REINFORCED if stage.needs_rollout else SUPERVISED) * parameters * tokens
    return starts * START_SECONDS + operations / (cores * rate * REACHED)
