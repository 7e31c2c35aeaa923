"""Stages that a model has nothing to train for are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from common.config.run import Run
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from learner.stages.stage import definition_of

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
    require_fit = definition_of(run.stages[0]).require_fit
    small = RxTConfig(vocab_size=30, width=16, heads=2, query_heads=2, kv_heads=2, slots=4)
    require_fit(run.stages[0], ReactiveTransformer(small))
    small.memory_attention = "last_interaction"
    with pytest.raises(InputError) as refused:
        require_fit(run.stages[0], ReactiveTransformer(small))
    assert refused.value.where == key
    assert what in refused.value.what
