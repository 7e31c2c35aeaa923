"""The memory that the plan tells of a causal run, against what a learner takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from common.config.run import Run
from deploy.causal_memory import learner_bytes, rollout_bytes
from deploy.causal_shape import causal_shape
from deploy.plan import plan_text
from tests.tiny_causal import write_model

ROOT = Path(__file__).resolve().parents[2]
WIDE = {"n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 256, "vocab_size": 8000}
"""A model of 29 million parameters."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), changes=WIDE)


def causal(model: Path, lora: dict[str, Any] | None = None, **stage: Any) -> Run:
    return Run.model_validate(
        {
            "name": "measured",
            "data": {"kind": "prompts", "train": ["prompts.txt"], "max_prompt_tokens": 32},
            "model": {"causal": {"path": str(model), "lora": lora}},
            "environment": {"kind": "single_turn"},
            "rollout": {"workers": 1, "slots": 4, "sampling": {"max_new_tokens": 64}},
            "stages": [
                {
                    "stage": "lm_rl",
                    "episodes": 6,
                    "iterations": 2,
                    "ppo": {"credit": "token", "kl": 0.1, "epochs": 1, "minibatches": 1},
                }
                | stage
            ],
        }
    )


def peak_of(run: Run, folder: Path) -> int:
    """Bytes of a learner process that makes updates of the run, at its peak."""
    (folder / "run.json").write_text(run.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "tests.causal_peak", str(folder / "run.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells peaks there")
@pytest.mark.parametrize("lora", [None, {"rank": 8}], ids=["whole", "lora"])
def test_the_plan_tells_the_peak_of_a_learner_within_a_quarter(
    model: Path, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    run = causal(model, lora)
    parts = learner_bytes(run, causal_shape(run.model.causal))
    planned, peak = sum(parts.values()), peak_of(run, tmp_path)
    assert abs(planned / peak - 1) < 0.25, (planned / peak, parts)
    # Not thanks to what any process takes: the rest alone is within half.
    rest = planned - parts["process"]
    assert abs(rest / (peak - parts["process"]) - 1) < 0.5


def test_parts_of_a_learners_memory_are_those_that_the_run_has(model: Path) -> None:
    shape = causal_shape(causal(model).model.causal)
    whole = learner_bytes(causal(model), shape)
    assert whole["reference policy"] == whole["weights"] == whole["gradients"]
    assert whole["optimiser"] == 2 * whole["weights"]
    adapted = causal(model, {"rank": 8})
    lora = learner_bytes(adapted, causal_shape(adapted.model.causal))
    assert "reference policy" not in lora
    assert lora["gradients"] * 20 < lora["weights"] == whole["weights"]
    assert lora["activations, about"] != whole["activations, about"]
    without = learner_bytes(causal(model, algorithm="rloo", rloo={"samples": 2}), shape)
    assert "value head" in whole
    assert "value head" not in without
    # Twice the rows keep twice the activations, until one pass is full.
    twice = learner_bytes(causal(model, episodes=12), shape)
    assert twice["activations, about"] == pytest.approx(2 * whole["activations, about"], rel=0.01)
    full, more = (learner_bytes(causal(model, episodes=n), shape) for n in (90, 900))
    assert full == more


def test_a_model_that_does_not_compute_without_contents_is_estimated(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(**shape, **heads, vocab_size=300, max_position_embeddings=128)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    run = causal(tmp_path)
    parts = learner_bytes(run, causal_shape(run.model.causal))
    tokens = 2 * (16 * 64 + 3 * 64) * 96 + 4 * 300 * 64
    assert parts["activations, about"] == 6 * tokens * 4


def test_a_worker_is_planned_with_its_cache_and_its_process(model: Path) -> None:
    run = causal(model)
    parts = rollout_bytes(run, causal_shape(run.model.causal))
    assert parts["KV cache at most"] == 4 * 8 * 2 * 512 * 256 * 4
    assert parts["process"] > 500 << 20
    text = plan_text(run)
    assert "Memory of a learner rank" in text
    assert "heap, about" in text
