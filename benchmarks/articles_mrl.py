"""The articles' own experiment on MRL: what it starts from decides what it comes to.

    python -m benchmarks.articles_mrl SEED [OUT]

Three models of the world of `configs/mrl16.yaml`, paid by the articles' sum of BLEU, cosine and
length (`configs/rewards/mostly_bleu_0_to_10.yaml`), learn by as many iterations of MRL: after all
supervised stages, without the stages that train memory (3 and 4), and with the last interaction in
place of a memory. Writes benchmarks/results/articles_mrl-SEED.json: mean reward of an answer and
recall on held-out conversations of eight follow-ups, before and after. Started again, it goes on
from where it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.mrl16 import CONFIG, compared, trained
from benchmarks.record import record
from common.config.loader import load_run

FILES = (CONFIG, CONFIG.parent / "rewards" / "mostly_bleu_0_to_10.yaml")
FOLLOW_UPS = 8
ITERATIONS = 15
"""Iterations of each step of the curriculum."""
SFT = {"stage": "sft", "steps": 100, "batch_size": 64, "optimizer": {"learning_rate": 1e-3}}
MEMORY_PRETRAIN = SFT | {"stage": "memory_pretrain"}
CURRICULUM = {"steps": [2, 4, FOLLOW_UPS], "iterations": ITERATIONS}
ARMS: dict[str, tuple[tuple[str, ...], str]] = {
    "all stages": (
        ("joint_lm", "sft", "reading", "memory_pretrain", "memory_aware"),
        "simple",
    ),
    "without stages 3 and 4": (("joint_lm", "sft"), "simple"),
    "last interaction": (("joint_lm", "sft", "reading"), "last_interaction"),
}
"""Supervised stages and memory attention of each model."""


def run(seed: int, out: Path) -> dict[str, Any]:
    """Both ends of MRL for each model."""
    data = f"data.steps=[2, 4, {FOLLOW_UPS}]"
    settings = load_run(list(map(str, FILES)), [f"seed={seed}", data])
    stages = {stage["stage"]: stage for stage in settings.model_dump(mode="json")["stages"]}
    stages |= {"sft": SFT, "memory_pretrain": MEMORY_PRETRAIN}
    mrl = stages["mrl"] | {"curriculum": CURRICULUM, "evaluate_every": 0}
    found, took = {}, {}
    for arm, (supervised, attention) in ARMS.items():
        name = f"articles_mrl-{seed}-{arm.replace(' ', '_')}"
        chosen = json.dumps([stages[stage] for stage in supervised])
        before, first = trained(
            f"{name}-before",
            seed,
            out,
            data,
            f"stages={chosen}",
            f"model.memory_attention={attention}",
            files=FILES,
        )
        after, learnt = trained(
            f"{name}-mrl",
            seed,
            out,
            data,
            f"model={{checkpoint: {before}, memory_attention: {attention}}}",
            f"stages={json.dumps([mrl])}",
            files=FILES,
        )
        found[arm] = compared(settings, FOLLOW_UPS, {"before": before, "mrl": after})
        took[arm] = sum(stage["wall_seconds"] for stage in (*first["stages"], *learnt["stages"]))
        environment = json.loads((after / "environment.json").read_text())
    return {"seed": seed, "environment": environment, "seconds": took, "arms": found}


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"articles_mrl-{number}", f"python -m benchmarks.articles_mrl {number}", result)
    for arm, figures in result["arms"].items():
        ends = {
            when: (figures[when]["scores"]["total"], figures[when]["recall"]["all"])
            for when in ("before", "mrl")
        }
        print(arm, {when: [round(each, 3) for each in two] for when, two in ends.items()})
