"""The game of `configs/game.yaml` with one seed: does its reward rise?

    python -m benchmarks.game SEED [OUT]

trains it in OUT (default: `runs`) as `game-SEED` and writes benchmarks/results/game-SEED.json: the
mean return of an episode (the share of games that are won) by iteration. Started again, it goes on
from where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, train

CONFIG = CONFIGS / "game.yaml"
ENDS = 3
"""Iterations whose mean is the return at first, and at last."""


def run(seed: int, out: Path) -> dict[str, Any]:
    done = train(CONFIG, [f"seed={seed}", f"name=game-{seed}", f"runs={out}"])
    returns = [row["objective/return"] for row in done.rows("mrl")]
    return {
        "seed": seed,
        "environment": done.environment,
        "wall_seconds": done.summary["wall_seconds"],
        "stages": done.stage_seconds,
        "first": sum(returns[:ENDS]) / ENDS,
        "last": sum(returns[-ENDS:]) / ENDS,
        "returns": returns,
    }


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"game-{number}", f"python -m benchmarks.game {number}", result)
    print(f"return {result['first']:.3f} at first, {result['last']:.3f} at last")
