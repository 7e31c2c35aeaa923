"""bAbI task 1 with one seed, from nothing, evaluated once on its test file.

    python -m benchmarks.babi SEED FOLDER [OUT] [--change CHANGE]

trains `configs/babi.yaml` on FOLDER (en-10k) in OUT (default: `runs`) and answers the 1,000
questions of the test file. Writes benchmarks/results/babi-SEED.json. CHANGE leaves one part out or
adds one, for the table of what each contributes, such as without_reading; the result is then
babi_CHANGE-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, train
from common.config.loader import load_run
from common.data.conversations import save_rows
from common.data.datasets.table import load_corpus
from learner.evaluation.evaluate import evaluate_checkpoint

CONFIG = CONFIGS / "babi.yaml"
STRETCH_OFF = ("model.gate_stretch=0.0", "stages.memory_aware.gate_penalty=0.0")
MEMORY_PRETRAIN = {"stage": "memory_pretrain", "steps": 400, "batch_size": 64}
CHANGES: dict[str, tuple[str, ...]] = {
    "without_neighbours": ("stages.joint_lm.neighbours=0", "stages.joint_lm.until={}"),
    "without_gate_per_number": ("model.residual_gate=linear", "model.gate_initial=0.0"),
    "without_stretch_and_penalty": STRETCH_OFF,
}
"""Settings of a change that leaves the stages as they are. Each stage then has all of its steps."""
STAGE_CHANGES = ("without_reading", "with_memory_pretrain")


def words(seed: int, folder: str, out: Path, change: str | None) -> list[str]:
    """Overrides of the configuration."""
    name = f"babi-{seed}" if change is None else f"babi-{change}-{seed}"
    common = [f"seed={seed}", f"name={name}", f"runs={out}", f"data.folder={folder}"]
    if change is None:
        return common
    if change not in STAGE_CHANGES:
        return [*common, *CHANGES[change]]
    stages = load_run([CONFIG], common).model_dump(mode="json")["stages"]
    at = next(i for i, stage in enumerate(stages) if stage["stage"] == "reading")
    if change == "without_reading":
        del stages[at]
    else:
        stages.insert(at + 1, MEMORY_PRETRAIN)
    return [*common, f"stages={json.dumps(stages)}"]


def run(seed: int, folder: str, out: Path, change: str | None) -> dict[str, Any]:
    """Summary of the run and retention on the test file, as in `engram eval --json`."""
    overrides = words(seed, folder, out, change)
    done, settings = train(CONFIG, overrides), load_run([CONFIG], overrides)
    questions = done.where / "test.jsonl"
    save_rows(load_corpus(settings.data, settings.seed).test, questions)
    return {
        "seed": seed,
        "change": change,
        "environment": done.environment,
        "wall_seconds": done.summary["wall_seconds"],
        "stages": done.stage_seconds,
        "steps": {stage["name"]: stage["steps"] for stage in done.summary["stages"]},
        "held_out": done.summary["retention"],
        "retention": evaluate_checkpoint(str(done.where), str(questions))["retention"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs"))
    parser.add_argument("--change", choices=[*CHANGES, *STAGE_CHANGES])
    given = parser.parse_args()
    result = run(given.seed, str(Path(given.folder).resolve()), given.out.resolve(), given.change)
    change = f" --change {given.change}" if given.change else ""
    named = f"babi_{given.change}" if given.change else "babi"
    command = f"python -m benchmarks.babi {given.seed} FOLDER{change}"
    record(f"{named}-{given.seed}", command, result)
    retention = result["retention"]
    print({key: retention[key] for key in ("exact", "memory", "erased")}, result["wall_seconds"])
