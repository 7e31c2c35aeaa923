"""PPO of a causal model beside TRL's: the same model, prompts, reward, batch, episodes and machine.

    python -m benchmarks.beside_trl SEED MODEL --peer PYTHON SCRIPT [--episodes 8192] [OUT]

SCRIPT runs TRL 1.12.0 under PYTHON, an environment of its own, and knows three commands:
`ppo MODEL --episodes N --seed S --out FILE` trains, `prompts` (run before) wrote
MODEL/prompts.jsonl, and `score MODEL TRAINED --out FILE` measures a trained model on held-out
prompts: mean score and KL to MODEL. Both systems train from MODEL, paid by VADER's compound score;
the script scores TRL's last model, and every checkpoint of ours. Our score at TRL's KL is
interpolated between the two checkpoints around it. Writes
benchmarks/results/beside_trl-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.record import record
from benchmarks.sentiment import CONFIG
from benchmarks.training import ROOT, SECONDS, TrainedRun, train

PROMPT, BATCH, RATE, KL = 8, 64, 3e-5, 0.02
CHECKPOINTS = 16
HELD_TO = ("OMP_NUM_THREADS", "PYTHONPATH")
"""Variables of this process that the script does not get."""


def prompts(model: Path, out: Path) -> Path:
    """The prompts that TRL learns from: those of exactly `PROMPT` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    lines = (model / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [
        line for line in lines if len(tokenizer(json.loads(line)["prompt"])["input_ids"]) == PROMPT
    ]
    path = out / "beside_trl-prompts.jsonl"
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return path


def ours(seed: int, model: Path, episodes: int, out: Path) -> TrainedRun:
    """Our run, trained where that is not done."""
    rows = prompts(model, out)
    function = {"name": "mood", "path": f"{ROOT / 'benchmarks' / 'vader.py'}:score", "weight": 1.0}
    iterations = episodes // BATCH
    return train(
        CONFIG,
        [
            f"seed={seed}",
            f"name=beside_trl-{seed}",
            f"runs={out}",
            f"data.train=[{rows}]",
            f"data.eval=[{model / 'held_out.jsonl'}]",
            f"model.causal.path={model}",
            f"stages.lm_rl.episodes={BATCH}",
            f"stages.lm_rl.iterations={iterations}",
            f"stages.lm_rl.optimizer.learning_rate={RATE:.6f}",
            f"stages.lm_rl.ppo.kl={KL}",
            f"rewards.cumulative.functions={json.dumps([function])}",
            f"learner.checkpoint_every={max(1, iterations // CHECKPOINTS)}",
            f"learner.keep_checkpoints={CHECKPOINTS + 1}",
            "learner.ranks=2",  # a core each, as TRL's one process has two threads
            "evaluation.episodes=16",
        ],
    )


def peer(command: Sequence[str], words: Sequence[str], result: Path) -> dict[str, Any]:
    """What the script writes to `result`, made where it is not there."""
    if not result.is_file():
        called = [*command, *words, "--out", str(result)]
        # Its one process may use all cores, whatever each of our processes is held to.
        own = {key: value for key, value in os.environ.items() if key not in HELD_TO}
        subprocess.run(called, env=own, check=True, timeout=SECONDS)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def at_kl(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Score at a KL, between the last checkpoint below it and the one after. points: (KL, score) by
    step. None where the KL is not reached."""
    for (low, first), (high, second) in itertools.pairwise(points):
        if low <= kl <= high:
            return first + (second - first) * (kl - low) / (high - low)
    return None


def run(seed: int, model: Path, command: Sequence[str], episodes: int, out: Path) -> dict[str, Any]:
    words = ["ppo", str(model), "--episodes", str(episodes), "--seed", str(seed)]
    theirs = peer(command, words, out / f"trl-{seed}.json")
    start = peer(command, ["score", str(model), str(model)], out / "trl-start-score.json")
    last = peer(
        command, ["score", str(model), str(out / f"trl-{seed}")], out / f"trl-{seed}-score.json"
    )
    done = ours(seed, model, episodes, out)
    rows = [row for row in done.rows() if "objective/scores" in row]
    name = done.where.name
    scored = {
        folder.name: peer(
            command, ["score", str(model), str(folder)], out / f"{name}-{folder.name}.json"
        )
        for folder in sorted((done.where / "checkpoints").glob("step_*"))
    }
    # The group of ranks and the workers start before the first row.
    seconds = (rows[-1]["time"] - rows[0]["time"]) * len(rows) / (len(rows) - 1)
    points = [(start["kl"], start["score"]), *((s["kl"], s["score"]) for s in scored.values())]
    final = points[-1][1]
    return {
        "seed": seed,
        "episodes": episodes,
        "settings": {"batch": BATCH, "learning_rate": RATE, "kl": KL, "epochs": 4},
        "start": start["score"],
        "trl": {
            "score": last["score"],
            "kl": last["kl"],
            "seconds": theirs["seconds"],
            "gain_a_thousand_episodes": 1000 * (last["score"] - start["score"]) / episodes,
            "gain_a_minute": 60 * (last["score"] - start["score"]) / theirs["seconds"],
        },
        "engram": {
            "score": final,
            "kl": points[-1][0],
            "score_at_trls_kl": at_kl(points, last["kl"]),
            "seconds": seconds,
            "seconds_with_start": done.stage_seconds["lm_rl"],
            "gain_a_thousand_episodes": 1000 * (final - start["score"]) / episodes,
            "gain_a_minute": 60 * (final - start["score"]) / seconds,
        },
        "checkpoints": scored,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs"))
    parser.add_argument("--peer", nargs=2, required=True, metavar=("PYTHON", "SCRIPT"))
    parser.add_argument("--episodes", type=int, default=8192)
    asked = parser.parse_args()
    folder = asked.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found = run(asked.seed, asked.model.resolve(), asked.peer, asked.episodes, folder)
    record(
        f"beside_trl-{asked.seed}",
        f"python -m benchmarks.beside_trl {asked.seed} MODEL --peer PYTHON SCRIPT",
        found,
    )
    print({name: found[name] for name in ("start", "trl", "engram")})
