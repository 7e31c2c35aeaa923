"""Whether what holds at 0.4 million parameters holds at nine: `configs/mrl16.yaml` in size nano.

    python -m benchmarks.mrl16_nano SEED [OUT]

trains all stages with fewer steps and a short curriculum, within an hour of two cores. Before and
after MRL the model answers test conversations of 8 to 64 follow-ups. Writes
benchmarks/results/mrl16_nano-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.mrl16 import CONFIG, LENGTHS, compared, trained
from benchmarks.record import record
from common.config.loader import load_run
from common.models.reactive.config import named_config

SIZE = ("model.size=nano",)
STEPS = {"joint_lm": 400, "reading": 200, "memory_aware": 400}
CURRICULUM = {"steps": [10, 16], "iterations": 10, "min_steps": 2}
EPISODES = 64


def run(seed: int, out: Path) -> dict[str, Any]:
    """Figures before and after MRL, with parameters and seconds by stage."""
    settings = load_run([str(CONFIG)], [f"seed={seed}", *SIZE])
    stages = {stage["stage"]: stage for stage in settings.model_dump(mode="json")["stages"]}
    supervised = [stages[name] | {"steps": steps} for name, steps in STEPS.items()]
    mrl = stages["mrl"] | {"episodes": EPISODES, "curriculum": CURRICULUM}
    name = f"mrl16_nano-{seed}"
    before, first = trained(f"{name}-before", seed, out, *SIZE, f"stages={json.dumps(supervised)}")
    from_there = f"model={{checkpoint: {before}}}"
    after, learnt = trained(f"{name}-mrl", seed, out, from_there, f"stages={json.dumps([mrl])}")
    policies = {"before": before, "mrl": after}
    size = named_config(
        "nano", vocab_size=settings.tokenizer.vocab_size, **settings.model.dimensions
    )
    return {
        "seed": seed,
        "environment": json.loads((after / "environment.json").read_text()),
        "parameters": size.parameters()["total"],
        "seconds": {
            stage["name"]: stage["wall_seconds"] for stage in (*first["stages"], *learnt["stages"])
        },
        "lengths": {str(n): compared(settings, n, policies) for n in LENGTHS},
    }


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"mrl16_nano-{number}", f"python -m benchmarks.mrl16_nano {number}", result)
    for length, figures in result["lengths"].items():
        print(length, {name: figures[name]["exact"]["all"] for name in ("before", "mrl")})
