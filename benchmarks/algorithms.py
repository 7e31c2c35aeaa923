"""What an algorithm of reinforcement learning gains on the demo.

    python -m benchmarks.algorithms ALGORITHM SEED [OUT]

Stage 4 of `configs/demo.yaml` is stopped early, or nothing would be left to gain; then come
`ITERATIONS` of MRL by the algorithm, which pays recall. Writes
benchmarks/results/ALGORITHM-SEED.json: the mean reward of an answer in the first and the last
`WINDOW` iterations (0 where nothing was asked for), and recall on held-out conversations before and
after, decoded greedily. Started again, it goes on from where it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, train

CONFIG = CONFIGS / "demo.yaml"
SUPERVISED_STEPS = 200
ITERATIONS = 40
WINDOW = 5
SETTINGS = {
    "ppo": {"discount": 0.0, "epochs": 1, "minibatches": 2},
    "reinforce": {"discount": 0.0, "minibatches": 2},
}
"""Beside what the algorithms have in common: as many steps, the same rate."""
RECALL_ALONE = {"bleu": None, "cosine": None, "length": None, "recall": {"weight": 1.0}}
"""The reward of an answer. The demo's own mix pays 0.84 for an answer that is well formed and
wrong: against a baseline that is one number for all turns, nearly all that an answer to a question
earns is then a penalty, and its variance hides what is right."""


def run(algorithm: str, seed: int, out: Path) -> dict[str, Any]:
    """Mean reward at both ends of MRL, and recall around it."""
    name = f"{algorithm}-{seed}"
    words = [
        f"seed={seed}",
        f"name={name}",
        f"runs={out}",
        "learner.log_every=1",
        f"stages.memory_aware.steps={SUPERVISED_STEPS}",
        f"stages.mrl.algorithm={algorithm}",
        "stages.mrl.evaluate_every=0",
        f"stages.mrl.{algorithm}={json.dumps(SETTINGS[algorithm])}",
        f"stages.mrl.curriculum=[{{name: all, iterations: {ITERATIONS}, max_steps: 6}}]",
        "stages.mrl.optimizer.learning_rate=3.0e-4",
        f"rewards={json.dumps({'single': RECALL_ALONE, 'cumulative': RECALL_ALONE})}",
    ]
    done = train(CONFIG, words)
    rewards = [row["objective/scores"] for row in done.rows("mrl")]
    retention = done.summary["retention"]
    return {
        "algorithm": algorithm,
        "seed": seed,
        "environment": done.environment,
        "reward_first": sum(rewards[:WINDOW]) / WINDOW,
        "reward_last": sum(rewards[-WINDOW:]) / WINDOW,
        "rewards": rewards,
        "recall_before": retention["before_mrl"]["all"],
        "recall_after": retention["after_mrl"]["all"],
    }


if __name__ == "__main__":
    algorithm, seed = sys.argv[1], int(sys.argv[2])
    out = Path(sys.argv[3] if len(sys.argv) > 3 else "runs").resolve()
    result = run(algorithm, seed, out)
    record(f"{algorithm}-{seed}", f"python -m benchmarks.algorithms {algorithm} {seed}", result)
    print({key: value for key, value in result.items() if isinstance(value, int | float | str)})
