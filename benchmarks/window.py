"""A causal model whose memory is its last interactions, on the demo's conversations: recall by
distance, within its window and beyond.

    python -m benchmarks.window SEED [OUT]

A Llama-shaped model from scratch learns the answers of `configs/demo.yaml`'s conversations by
`lm_sft`, with its last interactions before each, and goes on by `lm_rl`, which plays them. Writes
benchmarks/results/window-SEED.json; the controls are those of `engram eval`. Started again, it goes
on from where it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.three_memories import make_model
from benchmarks.training import CONFIGS, train
from common.config.loader import load_run
from learner.evaluation.evaluate import evaluate_checkpoint

DEMO, CONFIG = CONFIGS / "demo.yaml", CONFIGS / "text_memory.yaml"
INTERACTIONS, TOKENS = 4, 256
STEPS, ITERATIONS, EPISODES = 3000, 10, 64


def run(seed: int, out: Path) -> dict[str, Any]:
    demo = load_run([DEMO], [f"seed={seed}"])
    data = demo.model_dump(mode="json")["data"] | {"train": 30_000, "eval": 300}
    model = make_model(out / f"window-model-{seed}", demo)
    causal = {"path": str(model), "interactions": INTERACTIONS, "max_tokens": TOKENS}
    causal["text_memory"] = None  # which the configuration has
    curriculum = [{"name": "all", "iterations": ITERATIONS, "max_steps": 16}]
    words = [
        f"seed={seed}",
        f"name=window-{seed}",
        f"runs={out}",
        f"data={json.dumps(data)}",
        f"model={json.dumps({'causal': causal})}",
        f"stages.lm_sft.steps={STEPS}",
        f"stages.lm_rl.episodes={EPISODES}",
        f"stages.lm_rl.curriculum={json.dumps(curriculum)}",
        "evaluation.episodes=300",
    ]
    done = train(CONFIG, words)
    return {
        "seed": seed,
        "interactions": INTERACTIONS,
        "environment": done.environment,
        "seconds": done.stage_seconds,
        "scores": [row["objective/scores"] for row in done.rows("lm_rl")],
        "retention": evaluate_checkpoint(str(done.where))["retention"],
    }


if __name__ == "__main__":
    asked = int(sys.argv[1])
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve()
    found = run(asked, target)
    record(f"window-{asked}", f"python -m benchmarks.window {asked}", found)
    print(found["retention"]["memory"], found["retention"]["erased"])
