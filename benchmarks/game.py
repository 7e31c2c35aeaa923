"""The game of `configs/game.yaml` with one seed: does its reward rise?

    python -m benchmarks.game SEED [OUT]

trains it in OUT (default: `runs`) as `game-SEED` and writes benchmarks/results/game-SEED.json: the
mean return of an episode (the share of games that are won) by iteration. Started again, it goes on
from where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record

CONFIG = Path(__file__).parent.parent / "configs" / "game.yaml"
TRAINING_SECONDS = 3600.0
ENDS = 3
"""Iterations whose mean is the return at first, and at last."""


def run(seed: int, out: Path) -> dict[str, Any]:
    name = f"game-{seed}"
    words = [f"seed={seed}", f"name={name}", f"runs={out}"]
    command = [sys.executable, "-m", "deploy", "train", str(CONFIG), *words]
    subprocess.run(command, cwd=CONFIG.parent.parent, check=True, timeout=TRAINING_SECONDS)
    where = out / name
    summary = json.loads((where / "summary.json").read_text())
    rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    returns = [row["objective/return"] for row in rows if row["stage"] == "mrl"]
    return {
        "seed": seed,
        "environment": json.loads((where / "environment.json").read_text()),
        "wall_seconds": summary["wall_seconds"],
        "stages": {stage["name"]: stage["wall_seconds"] for stage in summary["stages"]},
        "first": sum(returns[:ENDS]) / ENDS,
        "last": sum(returns[-ENDS:]) / ENDS,
        "returns": returns,
    }


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"game-{number}", f"python -m benchmarks.game {number}", result)
    print(f"return {result['first']:.3f} at first, {result['last']:.3f} at last")
