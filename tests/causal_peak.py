"""A learner's update of a causal model in a process of its own, and the most memory that it had.

    python -m tests.causal_peak RUN.json

RUN.json: a run with one stage lm_rl, whose model.causal.path is a folder. Every row is as long as
the settings let it be.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import numpy as np
import ray.train.torch

import learner.stages.rl  # what a rank has imported
from common.config.lm import LMRL
from common.config.run import Run
from common.episode import Episode, Turn
from common.models.causal import open_causal
from learner.parallel.group import OneRank
from learner.policies.table import CheckpointPolicy
from tests.causal_updates import make_update

MADE_OF = (ray.train.torch, learner.stages.rl)
TEXT = (5, 290)
"""Ids that tests/tiny_causal.py has words for."""


def peak_bytes() -> int:
    """Largest resident memory of this process so far. Not `ru_maxrss`, which on Linux begins with
    that of the process that started this one."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


def episodes(count: int, prompt: int, answer: int) -> list[Episode]:
    """Single answers. prompt, answer: tokens of each."""
    rng = np.random.default_rng(0)
    nothing = Turn([], [], [], [])
    made = []
    for i in range(count):
        query, ids = (rng.integers(*TEXT, size).tolist() for size in (prompt, answer))
        turn = Turn(query, ids, [-8.0] * answer, [], reward=float(i % 3), done=True)
        made.append(Episode(str(i), str(i), i, (nothing, turn), 0, status="scored", batch_index=i))
    return made


def main(file: str) -> None:
    run = Run.model_validate_json(Path(file).read_text())
    settings, causal, limit = cast(LMRL, run.stages[0]), run.model.causal, run.data.longest_prompt
    assert causal is not None, "the run has a causal model"
    assert limit is not None, "the run says how long prompts are"
    model, tokenizer = open_causal(causal)
    update = make_update(model, tokenizer, causal, settings, OneRank())
    start = len(tokenizer.memory.start)
    batch = episodes(settings.episodes, limit - start, run.rollout.sampling.max_new_tokens)
    places = [episode.batch_index for episode in batch]
    for iteration in range(2):
        CheckpointPolicy("causal", model, tokenizer, causal).weights(iteration)
        update.run(update.evaluate(batch, places), places, len(batch), iteration)
    print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1])
