"""How many facts memory holds, by the gate of its writes: recall against the number of facts that a
conversation tells before it asks for all of them.

    python -m benchmarks.capacity GATE [OUT] [--seed 1]

trains `configs/long_context.yaml` on conversations of `engram data synth capacity` (`FACTS`), with
the gate of that file (`per_number`) or the articles' (`linear`), and asks on held-out conversations
of as many facts and of more (`ASKED`). Writes benchmarks/results/capacity_GATE-SEED.json. Started
again, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, train
from common.config.generation import Capacity
from common.config.loader import load_run
from common.data.conversations import save_rows
from common.data.datasets.capacity import capacity_rows
from learner.evaluation.evaluate import evaluate_checkpoint

CONFIG = CONFIGS / "long_context.yaml"
GATES = {
    "per_number": [],
    "linear": ["model.residual_gate=linear", "model.gate_initial=0.0"],
}
"""Settings of each gate. The articles' begins by keeping half."""
FACTS, TRAIN = (2, 4, 8, 16), 2500
ASKED, EVAL = (2, 4, 8, 12, 16, 24, 32, 48), 100
VALUES, OVERWRITTEN = 64, 0.25
STEPS = 1000
"""Of memory-aware training."""
SHORTEST = 4
"""Follow-ups of the shortest conversations that ask for all that they told."""


def write_data(folder: Path, seed: int) -> None:
    """FOLDER/train_N.jsonl and FOLDER/eval_N.jsonl for each number of facts."""
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"values": VALUES, "overwritten": OVERWRITTEN}
    learnt = Capacity(facts=FACTS, train=TRAIN, eval=0, **common)
    asked = Capacity(facts=ASKED, train=0, eval=EVAL, **common)
    for name, rows in (capacity_rows(learnt, seed) | capacity_rows(asked, seed)).items():
        save_rows(rows, folder / f"{name}.jsonl")


def benchmark(gate: str, seed: int, out: Path) -> dict[str, Any]:
    folder = out / f"capacity_data-{seed}"
    if not (folder / f"eval_{ASKED[-1]}.jsonl").is_file():
        write_data(folder, seed)
    files = {
        "train": [str(folder / f"train_{facts}.jsonl") for facts in FACTS],
        "eval": [str(folder / f"eval_{facts}.jsonl") for facts in FACTS],
    }
    words = [
        f"seed={seed}", f"runs={out}", f"name=capacity_{gate}-{seed}",
        *(f"data.{split}={json.dumps(names)}" for split, names in files.items()),
        f"stages.memory_aware.steps={STEPS}", f"stages.memory_aware.first_follow_ups={SHORTEST}",
        *GATES[gate],
    ]  # fmt: skip
    done = train(CONFIG, words)
    asked = {
        facts: evaluate_checkpoint(str(done.where), str(folder / f"eval_{facts}.jsonl"))
        for facts in ASKED
    }
    return {
        "seed": seed,
        "gate": gate,
        "environment": done.environment,
        "slots": load_run([CONFIG], words).model.slots,
        "seconds": done.stage_seconds,
        "learnt": list(FACTS),
        "facts": {str(facts): shares(found["retention"]) for facts, found in asked.items()},
    }


def shares(retention: dict[str, Any]) -> dict[str, Any]:
    """Exact answers over all questions, and to those for facts that changed, with controls."""
    return {
        "exact": retention["exact"]["all"],
        "interval": retention["intervals"]["exact"]["all"],
        "changed": retention["changed"].get("all"),
        "erased": retention["erased"]["all"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gate", choices=GATES)
    parser.add_argument("out", nargs="?", default="runs")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    result = benchmark(given.gate, given.seed, Path(given.out).resolve())
    name = f"capacity_{given.gate}-{given.seed}"
    record(name, f"python -m benchmarks.capacity {given.gate} --seed {given.seed}", result)
    for facts, share in result["facts"].items():
        print(facts, "facts: exact", share["exact"], "erased", share["erased"])
