"""bAbI task 1 with one seed, from nothing, evaluated once on its test file.

    python -m benchmarks.babi SEED FOLDER [OUT] [--without PART]

trains `configs/babi.yaml` on FOLDER (en-10k) in OUT (default: `runs`) and answers the 1,000
questions of the test file. Writes benchmarks/results/babi-SEED.json. PART leaves one thing out, for
the table of what each contributes; the result is then babi_without_PART-SEED.json. Started again,
it goes on from where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record
from common.config.loader import load_run
from common.data.conversations import save_rows
from common.data.datasets.table import load_corpus
from learner.evaluation.evaluate import evaluate_checkpoint

CONFIG = Path(__file__).parent.parent / "configs" / "babi.yaml"
SECONDS = 3600.0
STRETCH_OFF = ("model.gate_stretch=0.0", "stages.memory_aware.gate_penalty=0.0")
PARTS: dict[str, tuple[str, ...]] = {
    "neighbours": ("stages.joint_lm.neighbours=0", "stages.joint_lm.until={}"),
    "reading": (),
    "gate_per_number": ("model.residual_gate=linear", "model.gate_initial=0.0"),
    "stretch_and_penalty": STRETCH_OFF,
}
"""Settings without a part. Each stage then has all of its steps."""


def words(seed: int, folder: str, out: Path, without: str | None) -> list[str]:
    """Overrides of the configuration."""
    name = f"babi-{seed}" if without is None else f"babi-without-{without}-{seed}"
    common = [f"seed={seed}", f"name={name}", f"runs={out}", f"data.folder={folder}"]
    if without is None:
        return common
    if without == "reading":
        stages = load_run([str(CONFIG)], common).model_dump(mode="json")["stages"]
        left = [stage for stage in stages if stage["stage"] != "reading"]
        return [*common, f"stages={json.dumps(left)}"]
    return [*common, *PARTS[without]]


def run(seed: int, folder: str, out: Path, without: str | None) -> dict[str, Any]:
    """Summary of the run and retention on the test file, as in `engram eval --json`."""
    overrides = words(seed, folder, out, without)
    command = [sys.executable, "-m", "deploy", "train", str(CONFIG), *overrides]
    subprocess.run(command, check=True, timeout=SECONDS)
    settings = load_run([str(CONFIG)], overrides)
    where = out / settings.name
    summary = json.loads((where / "summary.json").read_text())
    questions = where / "test.jsonl"
    save_rows(load_corpus(settings.data, settings.seed).test, questions)
    return {
        "seed": seed,
        "without": without,
        "environment": json.loads((where / "environment.json").read_text()),
        "wall_seconds": summary["wall_seconds"],
        "stages": {stage["name"]: stage["wall_seconds"] for stage in summary["stages"]},
        "steps": {stage["name"]: stage["steps"] for stage in summary["stages"]},
        "held_out": summary["retention"],
        "retention": evaluate_checkpoint(str(where), str(questions))["retention"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs"))
    parser.add_argument("--without", choices=PARTS)
    given = parser.parse_args()
    result = run(given.seed, given.folder, given.out.resolve(), given.without)
    part = f" --without {given.without}" if given.without else ""
    named = f"babi_without_{given.without}" if given.without else "babi"
    record(f"{named}-{given.seed}", f"python -m benchmarks.babi {given.seed} FOLDER{part}", result)
    retention = result["retention"]
    print({key: retention[key] for key in ("exact", "memory", "erased")}, result["wall_seconds"])
