"""A causal model whose memory is its last interactions, on the demo's conversations: recall by
distance, within its window and beyond.

    python -m benchmarks.window SEED [OUT]

A Llama-shaped model from scratch first learns to copy: by `lm_sft` with a text memory, which it
writes after each turn of `configs/demo.yaml`'s conversations. Then it has its last interactions in
place of that memory, learns the answers by `lm_sft`, and goes on by `lm_rl`, which plays the
conversations. Writes benchmarks/results/window-SEED.json; the controls are those of `engram eval`.
Started again, it goes on from where it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.text_memory import make_model
from benchmarks.training import CONFIGS, train
from common.config.loader import load_run
from learner.evaluation.evaluate import evaluate_checkpoint

DEMO, CONFIG = CONFIGS / "demo.yaml", CONFIGS / "text_memory.yaml"
INTERACTIONS, TOKENS = 4, 256
COPYING, STEPS, ITERATIONS, EPISODES = 1500, 600, 10, 64
"""Steps of `lm_sft` with a text memory, and with the window; iterations of `lm_rl`, their size."""


def run(seed: int, out: Path) -> dict[str, Any]:
    demo = load_run([DEMO], [f"seed={seed}"])
    data = demo.model_dump(mode="json")["data"] | {"train": 8000, "eval": 300}
    common = [f"seed={seed}", f"runs={out}", f"data={json.dumps(data)}", "evaluation.episodes=300"]
    sft, reinforced = load_run([CONFIG], common).model_dump(mode="json")["stages"]
    model = make_model(out / f"window-model-{seed}", demo, demo.tokenizer.vocab_size)
    writes = {"path": str(model), "max_tokens": TOKENS}
    copying = train(
        CONFIG,
        [
            *common,
            f"name=window-copying-{seed}",
            f"model={json.dumps({'causal': writes})}",
            f"stages={json.dumps([sft | {'steps': COPYING}])}",
        ],
    )
    remembers = {"path": str(copying.where), "text_memory": None, "interactions": INTERACTIONS}
    curriculum = [{"name": "all", "iterations": ITERATIONS, "max_steps": 16}]
    reinforced = reinforced | {"episodes": EPISODES, "curriculum": curriculum}
    done = train(
        CONFIG,
        [
            *common,
            f"name=window-{seed}",
            f"model={json.dumps({'causal': remembers | {'max_tokens': TOKENS}})}",
            f"stages={json.dumps([sft | {'steps': STEPS}, reinforced])}",
        ],
    )
    return {
        "seed": seed,
        "interactions": INTERACTIONS,
        "environment": done.environment,
        "seconds": {"copying": copying.stage_seconds["lm_sft"]} | done.stage_seconds,
        "scores": [row["objective/scores"] for row in done.rows("lm_rl")],
        "retention": evaluate_checkpoint(str(done.where))["retention"],
    }


if __name__ == "__main__":
    asked = int(sys.argv[1])
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve()
    found = run(asked, target)
    record(f"window-{asked}", f"python -m benchmarks.window {asked}", found)
    print(found["retention"]["memory"], found["retention"]["erased"])
