"""The demo with one seed, and what it recalls of changed facts on each held-out pattern.

    python -m benchmarks.demo SEED [OUT]

trains `configs/demo.yaml` in OUT (default: `runs/demo-SEED`) and evaluates 1,000 conversations of
each pattern of change (common/data/datasets/synth.py), drawn with a seed of their own. Writes
benchmarks/results/demo-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, train
from common.config.data import SynthData
from common.config.loader import load_run
from common.config.run import Run
from common.data.conversations import save_rows
from common.data.datasets.synth import PATTERNS, UNSEEN, pattern_rows
from common.seeding import derive
from learner.evaluation.evaluate import evaluate_checkpoint

CONFIG = CONFIGS / "demo.yaml"
QUESTIONS = 1000


def run(seed: int, out: Path) -> dict[str, Any]:
    """The summary of the demo and the retention on each pattern, as in `engram eval --json`."""
    words = [f"seed={seed}", f"name=demo-{seed}", f"runs={out}"]
    done = train(CONFIG, words)
    return {
        "seed": seed,
        "environment": done.environment,
        "wall_seconds": done.summary["wall_seconds"],
        "stages": done.stage_seconds,
        "retention": done.summary["retention"],
        "unseen": UNSEEN,
        "patterns": patterns(load_run([CONFIG], words), done.where),
    }


def patterns(settings: Run, where: Path) -> dict[str, Any]:
    """Retention of a run on the held-out patterns of its data."""
    data = settings.data
    assert isinstance(data, SynthData)
    found = {}
    for name in PATTERNS:
        path = where / f"{name}.jsonl"
        save_rows(pattern_rows(data, name, QUESTIONS, derive(settings.seed, "patterns")), path)
        found[name] = evaluate_checkpoint(str(where), str(path))["retention"]
    return found


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"demo-{number}", f"python -m benchmarks.demo {number}", result)
    for name, retention in result["patterns"].items():
        shares = {
            figure: retention[figure]["all"]
            for figure in ("changed", "outdated", "exact", "memory")
        }
        print(name, {figure: round(share, 3) for figure, share in shares.items()})
