"""Whether two versions of the code train alike, bit for bit.

    python -m benchmarks.same_losses REVISION

A few steps of every stage on the data of `configs/demo.yaml` are run once from REVISION, in a
worktree of its own, and once from the files in this checkout. Every row of `metrics.jsonl` is
compared, time aside. Bits depend on the processor, so nothing is kept in the repository; what
REVISION gave stays in `runs/same_losses/` and is not run again. Exits with 1 where a row differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "runs" / "same_losses"
SECONDS = 900.0
WORDS = (
    *("name=short", "data.train=300", "data.eval=40", "evaluation.episodes=40"),
    *("learner.log_every=1", "learner.checkpoint_every=3", "rollout.workers=2"),
    "stages=[{stage: joint_lm, steps: 4, neighbours: 3}, "
    "{stage: sft, steps: 5, blind_fraction: 0.3}, {stage: reading, steps: 3}, "
    "{stage: memory_pretrain, steps: 6}, {stage: memory_aware, steps: 7, gate_penalty: 0.3}, "
    "{stage: mrl, episodes: 24, ppo: {critic_warmup: 1}, "
    "curriculum: [{name: all, iterations: 3, max_steps: 6, reset_probability: 0.5}]}]",
)
"""From the shipped demo to a run of two minutes that has all of its stages. Memory is carried over:
every path is taken."""
OF_TIME = (
    *("time", "seconds", "per_second", "memory_bytes", "object_store"),
    *("queue", "fleet/", "watchdog"),
)
"""Parts of the names of metrics that no two runs share."""


def rows(code: Path, out: Path) -> list[dict[str, Any]]:
    """The rows of metrics of a short run of the code in a folder."""
    metrics = out / "short" / "metrics.jsonl"
    if not (out / "done").exists():
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        config = str(code / "configs" / "demo.yaml")
        command = [sys.executable, "-m", "deploy", "train", config, f"runs={out}", *WORDS]
        subprocess.run(command, cwd=code, env=environment, check=True, timeout=SECONDS)
        (out / "done").touch()
    found = (json.loads(line) for line in metrics.read_text().splitlines())
    return [
        {key: value for key, value in row.items() if not any(word in key for word in OF_TIME)}
        for row in found
    ]


def rows_of(revision: str) -> list[dict[str, Any]]:
    """The rows of a revision, run at most once on this machine."""
    named = ["git", "rev-parse", "--verify", f"{revision}^{{commit}}"]
    commit = subprocess.run(named, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    out = KEPT / commit.strip()
    code = out / "code"
    if not (out / "done").exists():
        add = ["git", "worktree", "add", "--detach", "--force", str(code), commit.strip()]
        subprocess.run(add, cwd=ROOT, check=True, capture_output=True)
    try:
        return rows(code, out)
    finally:
        remove = ["git", "worktree", "remove", "--force", str(code)]
        subprocess.run(remove, cwd=ROOT, check=False, capture_output=True)


def differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """A line for each figure that differs, to the last bit."""
    found = []
    if len(before) != len(after):
        found.append(f"{len(before)} rows, now {len(after)}")
    for old, new in zip(before, after, strict=False):
        where = f"{old.get('stage')} step {old.get('step')}"
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                found.append(f"{where}: {key} was {old.get(key)}, is {new.get(key)}")
    return found


def largest_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """The largest relative difference of a figure, and which it is."""
    found = [
        (abs(old[key] - new[key]) / max(abs(old[key]), 1e-12), f"{old['stage']} {key}")
        for old, new in zip(before, after, strict=False)
        for key in old.keys() & new.keys()
        if isinstance(old[key], int | float) and isinstance(new[key], int | float)
    ]
    return "{:.1e} ({})".format(*max(found)) if found else "none"


if __name__ == "__main__":
    before = rows_of(sys.argv[1])
    here = KEPT / "here"
    subprocess.run(["rm", "-rf", str(here)], check=True)
    after = rows(ROOT, here)
    found = differences(before, after)
    print(*found[:40], sep="\n")
    figures = sum(map(len, before))
    print(f"{len(found)} of {figures} figures in {len(before)} rows differ from {sys.argv[1]}")
    print(f"largest relative difference: {largest_difference(before, after)}")
    sys.exit(bool(found))
