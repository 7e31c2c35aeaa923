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
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.sentiment import ROOT
from benchmarks.three_memories import make_model
from common.config.loader import load_run
from learner.evaluation.evaluate import evaluate_checkpoint

DEMO, CONFIG = (ROOT / "configs" / f"{name}.yaml" for name in ("demo", "text_memory"))
INTERACTIONS, TOKENS = 4, 256
STEPS, ITERATIONS, EPISODES = 600, 10, 64
SECONDS = 3600.0


def run(seed: int, out: Path) -> dict[str, Any]:
    demo = load_run([DEMO], [f"seed={seed}"])
    data = demo.model_dump(mode="json")["data"] | {"train": 4000, "eval": 300}
    model = make_model(out / f"window-model-{seed}", demo)
    causal = {"path": str(model), "interactions": INTERACTIONS, "max_tokens": TOKENS}
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
    command = [sys.executable, "-m", "deploy", "train", str(CONFIG), *words]
    subprocess.run(command, cwd=ROOT, check=True, timeout=SECONDS)
    where = out / f"window-{seed}"
    rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((where / "summary.json").read_text())
    return {
        "seed": seed,
        "interactions": INTERACTIONS,
        "environment": json.loads((where / "environment.json").read_text()),
        "seconds": {stage["name"]: stage["wall_seconds"] for stage in summary["stages"]},
        "scores": [row["objective/scores"] for row in rows if row["stage"] == "lm_rl"],
        "retention": evaluate_checkpoint(str(where))["retention"],
    }


if __name__ == "__main__":
    asked = int(sys.argv[1])
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve()
    found = run(asked, target)
    record(f"window-{asked}", f"python -m benchmarks.window {asked}", found)
    print(found["retention"]["memory"], found["retention"]["erased"])
