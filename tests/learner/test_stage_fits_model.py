"""Stages that a model has nothing to train for are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.storage.run_directory import RunDirectory
from learner.setup import newest, prepare
from learner.stages.stage import definition_of
from tests.local_source import run_here, tiny_run

PHASES = [
    {"after": 0, "train": ["memory_cross_attention", "memory_attention"]},
    {"after": 2, "train": ["encoder"]},
]
CURRICULUM = [{"name": "all", "iterations": 4, "max_steps": 2}]


@pytest.mark.parametrize(
    ("stage", "key", "what"),
    [
        (
            {"stage": "memory_pretrain", "steps": 4},
            "stages.memory_pretrain",
            "trains the memory attention, and model.memory_attention is last_interaction",
        ),
        (
            {"stage": "memory_aware", "steps": 4, "unfreeze": PHASES},
            "stages.memory_aware.unfreeze.0.train",
            "memory_attention has no parameters",
        ),
        (
            {"stage": "mrl", "episodes": 4, "curriculum": CURRICULUM, "unfreeze": PHASES},
            "stages.mrl.unfreeze.0.train",
            "memory_attention has no parameters",
        ),
    ],
)
def test_a_stage_that_trains_a_memory_attention_wants_one(
    stage: dict[str, Any], key: str, what: str
) -> None:
    run = Run.model_validate({"name": "none", "data": {"kind": "synth"}, "stages": [stage]})
    require_shape = definition_of(run.stages[0]).require_shape
    small = RxTConfig(vocab_size=30, width=16, heads=2, query_heads=2, kv_heads=2, slots=4)
    require_shape(run.stages[0], small)
    small.memory_attention = "last_interaction"
    with pytest.raises(InputError) as refused:
        require_shape(run.stages[0], small)
    assert refused.value.where == key
    assert what in refused.value.what


def test_the_shape_of_a_given_checkpoint_is_looked_at_when_it_is_opened(tmp_path: Path) -> None:
    control = {"memory_attention": "last_interaction", "initial_memory": "normal"}
    directory, _ = run_here(tiny_run(tmp_path, model=control))
    given = newest(directory).where
    run = tiny_run(tmp_path, "memory_pretrain", name="next", model={"checkpoint": given})
    with pytest.raises(InputError, match="memory_attention is last_interaction, which has none"):
        prepare(run, RunDirectory(run.runs, run.name), load_corpus(run.data, run.seed))
