"""MRL whose memory is carried from conversation to conversation.

    python -m benchmarks.mrl_carrying SEED [OUT]

goes on from the supervised weights of `python -m benchmarks.mrl16 SEED OUT`, which began every
conversation with fresh memory: `ITERATIONS` of MRL, most of whose episodes begin with the memory
that another one left. Before and after it the model answers test conversations from fresh memory
and from such memory. Writes benchmarks/results/mrl_carrying-SEED.json. Started again, it goes on
from where it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.mrl16 import CARRIED, CONFIG, compared, trained
from benchmarks.record import record
from common.config.loader import load_run

ITERATIONS = 60
CURRICULUM = {"steps": [16], "iterations": ITERATIONS, "min_steps": 2, "reset_probability": 0.2}
WINDOW = 5
"""Iterations whose mean recall is told for the first and the last ones with carried memory."""


def run(seed: int, out: Path) -> dict[str, Any]:
    """Figures before and after, and sampled recall of the first and the last iterations."""
    settings = load_run([str(CONFIG)], [f"seed={seed}"])
    before = out / f"mrl16-{seed}-before"
    # It measures nothing as it goes: what is held out begins with fresh memory, so the best weights
    # by that measure would be those of the start.
    mrl = settings.model_dump(mode="json")["stages"][-1] | {"evaluate_every": 0}
    after, learnt = trained(
        f"mrl_carrying-{seed}",
        seed,
        out,
        f"model={{checkpoint: {before}}}",
        "learner.log_every=1",
        f"stages={json.dumps([mrl | {'curriculum': CURRICULUM}])}",
    )
    rows = [json.loads(line) for line in (after / "metrics.jsonl").read_text().splitlines()]
    recall = [row["rollout/recall"] for row in rows][3:]  # the first ones find no memory to carry
    policies = {"before": before, "mrl": after}
    return {
        "seed": seed,
        "environment": json.loads((after / "environment.json").read_text()),
        "seconds": learnt["stages"][-1]["wall_seconds"],
        "recall_first": sum(recall[:WINDOW]) / WINDOW,
        "recall_last": sum(recall[-WINDOW:]) / WINDOW,
        "lengths": {str(n): compared(settings, n, policies, carried=True) for n in CARRIED},
    }


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"mrl_carrying-{number}", f"python -m benchmarks.mrl_carrying {number}", result)
    for length, figures in result["lengths"].items():
        shares = {
            when: [round(figures[when][what]["all"], 3) for what in ("exact", "carried")]
            for when in ("before", "mrl")
        }
        print(length, shares)
