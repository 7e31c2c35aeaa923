"""What lets memory chain facts: bAbI task 2, where the place of a thing follows from who took it
and from where that person went, or dropped it.

    python -m benchmarks.babi_chains VARIANT FOLDER [OUT] [--seed 1] [--steps 1500]

trains `configs/babi_all.yaml` on task 2 of FOLDER (en-10k) alone, changed as `VARIANTS` says, and
evaluates on training stories that it holds out. Writes
benchmarks/results/babi_chains_VARIANT-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.babi_all import FILES, curve
from benchmarks.record import record
from benchmarks.training import train
from learner.evaluation.evaluate import evaluate_checkpoint

VARIANTS: dict[str, list[str]] = {
    "block": ["data.layout=block", "model.max_tokens=320"],
    "statement": [],
    "self": ["model.memory_attention=self"],
    "reads": ["model.memory_reads=2"],
    "delta": ["model.residual_gate=delta"],
    "layers": ["model.layers=3"],
}
"""Settings beside those of a statement a turn, one read, simple memory attention and a gate per
number."""
HELD_OUT = 0.1
FIRST_STEPS = 600
"""Of each stage before memory, at most."""


def benchmark(variant: str, seed: int, folder: Path, out: Path, steps: int) -> dict[str, Any]:
    words = [
        f"seed={seed}", f"name=babi_chains_{variant}-{seed}", f"runs={out}",
        f"data.folder={folder}", "data.tasks=[2]", f"data.eval_fraction={HELD_OUT}",
        f"stages.joint_lm.steps={FIRST_STEPS}", f"stages.reading.steps={FIRST_STEPS}",
        f"stages.memory_aware.steps={steps}", "evaluation.episodes=200", *VARIANTS[variant],
    ]  # fmt: skip
    done = train(FILES, words)
    retention = evaluate_checkpoint(str(done.where))["retention"]
    return {
        "seed": seed,
        "variant": variant,
        "environment": done.environment,
        "seconds": done.stage_seconds,
        "steps": steps,
        "curve": curve(done.rows("memory_aware")),
        "exact": retention["exact"]["all"],
        "interval": retention["intervals"]["exact"]["all"],
        "erased": retention["erased"]["all"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", nargs="?", default="runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    out = Path(given.out).resolve()
    result = benchmark(given.variant, given.seed, given.folder.resolve(), out, given.steps)
    name = f"babi_chains_{given.variant}-{given.seed}"
    record(name, f"python -m benchmarks.babi_chains {given.variant} FOLDER", result)
    print(given.variant, result["exact"], result["interval"], result["seconds"])
