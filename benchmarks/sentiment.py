"""Reinforcement learning of a small GPT-2 for a good mood: what each algorithm gains, and how far
it goes from where it started.

    python -m benchmarks.tiny_gpt2 FOLDER FILE.txt …
    python -m benchmarks.sentiment ALGORITHM SEED FOLDER [OUT]

trains `configs/sentiment_small.yaml` from FOLDER/model on FOLDER/prompts.jsonl, paid by
`benchmarks/vader.py`, and writes benchmarks/results/sentiment_ALGORITHM-SEED.json: figures of
answers to held-out prompts, sampled before and after with the same random numbers, by training's
reward and by one that training never used, the words of configs/praise.py. Started again, it goes
on from where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import record
from benchmarks.tiny_gpt2 import words_of_folder
from benchmarks.training import CONFIGS, ROOT, train
from benchmarks.vader import mood
from common.config.causal import CausalModel
from common.config.data import PromptsData
from common.config.loader import load_run
from common.config.run import Run
from common.data.datasets.prompts import load_prompts
from common.episode import Episode
from common.models.causal import open_causal
from common.storage.checkpoint import open_checkpoint
from configs.praise import score as praise
from learner.evaluation.prompts import prompt_figures, prompt_tasks
from learner.parallel.group import OneRank
from learner.policies.causal import CausalPolicy
from learner.policies.table import CheckpointPolicy, open_policy
from rollout.policies.play import play

CONFIG = CONFIGS / "sentiment_small.yaml"
ITERATIONS, EPISODES, RATE = 20, 64, 2e-4
HELD_OUT = 400
ENDS = 3
"""Iterations whose mean is the training score at first, and at last."""
Judges = Mapping[str, Callable[[Episode], float]]
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"credit": "token", "epochs": 4, "minibatches": 1, "discount": 1.0},
    "reinforce": {"whiten": True, "epochs": 1, "minibatches": 4},
    "rloo": {"samples": 4, "epochs": 2, "minibatches": 2},
    "rejection": {"samples": 4, "keep": 1, "keep_of": "task", "epochs": 2, "minibatches": 2},
}
SHARED = {"kl": 0.02, "kl_in": "reward"}


def words_of(algorithm: str, seed: int, folder: Path, out: Path) -> list[str]:
    """What is laid over the configuration."""
    section = SHARED | SETTINGS[algorithm]
    path = f"{ROOT / 'benchmarks' / 'vader.py'}:score"
    function = {"name": "mood", "path": path, "weight": 1.0}
    return [
        f"seed={seed}",
        f"name=sentiment_{algorithm}-{seed}",
        f"runs={out}",
        *words_of_folder(folder),
        f"stages.lm_rl.episodes={EPISODES}",
        f"stages.lm_rl.iterations={ITERATIONS}",
        f"stages.lm_rl.algorithm={algorithm}",
        f"stages.lm_rl.{algorithm}={json.dumps(section)}",
        f"stages.lm_rl.optimizer.learning_rate={RATE:.6f}",
        f"rewards.cumulative.functions={json.dumps([function])}",
        "evaluation.episodes=16",
    ]


def run(algorithm: str, seed: int, folder: Path, out: Path) -> dict[str, Any]:
    words = words_of(algorithm, seed, folder, out)
    done, settings = train(CONFIG, words), load_run([CONFIG], words)
    scores = [row["objective/scores"] for row in done.rows("lm_rl")]
    assert settings.model.causal is not None
    start = CheckpointPolicy("causal", *open_causal(settings.model.causal))
    before, played = held_out(settings, start, JUDGES, settings.model.causal)
    after, others = held_out(settings, open_policy(open_checkpoint(str(done.where))), JUDGES)
    return {
        "algorithm": algorithm,
        "seed": seed,
        "environment": done.environment,
        "settings": SHARED
        | SETTINGS[algorithm]
        | {"learning_rate": RATE, "batch": EPISODES, "iterations": ITERATIONS},
        "episodes": EPISODES * ITERATIONS,
        "seconds": done.stage_seconds["lm_rl"],
        "first": sum(scores[:ENDS]) / ENDS,
        "last": sum(scores[-ENDS:]) / ENDS,
        "scores": scores,
        "before": before,
        "after": after,
        "wins": {name: wins(judge, others, played) for name, judge in JUDGES.items()},
    }


def held_out(
    run: Run, opened: CheckpointPolicy, judges: Judges, model: CausalModel | None = None
) -> tuple[dict[str, Any], list[Episode]]:
    """Figures of sampled answers to held-out prompts, with the mean of each judge, and the answers.
    model: None measures the KL to the model that the run began with."""
    assert isinstance(run.data, PromptsData), "the configuration has prompts"
    rows = [row for name in run.data.eval for row in load_prompts(name)][:HELD_OUT]
    episodes = play(opened.playing(run.rollout, run.environment), prompt_tasks(rows, 1))
    reference = None
    if model is None and run.model.causal is not None:
        start = open_causal(run.model.causal)[0].requires_grad_(False)
        window, head = opened.tokenizer.memory, run.model.causal.value_head
        reference = CausalPolicy(start, window, OneRank(), head)
    figures = prompt_figures(episodes, opened.tokenizer.eos_id, reference, 1.0)
    for name, judge in judges.items():
        values = torch.tensor([judge(episode) for episode in episodes])
        error = float(values.std()) / len(values) ** 0.5
        figures[name] = {"mean": float(values.mean()), "error": error}
    return figures, episodes


def _mood(episode: Episode) -> float:
    return mood(f"{episode.answered[0].query} {episode.answered[0].answer}")


def _praise(episode: Episode) -> float:
    return float(praise(episode.answered[0]))


JUDGES: Judges = {"score": _mood, "praise": _praise}
"""Training is paid by the first; it never saw the second."""


def wins(judge: Any, ours: list[Episode], theirs: list[Episode]) -> float:
    """Share of prompts whose answer after training is judged better than the one before; half of
    one where both are alike."""
    pairs = [(judge(one), judge(other)) for one, other in zip(ours, theirs, strict=True)]
    return sum((one > other) + 0.5 * (one == other) for one, other in pairs) / len(pairs)


if __name__ == "__main__":
    algorithm, seed, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
    out = Path(sys.argv[4] if len(sys.argv) > 4 else "runs").resolve()
    result = run(algorithm, seed, folder, out)
    called = f"python -m benchmarks.sentiment {algorithm} {seed} FOLDER"
    record(f"sentiment_{algorithm}-{seed}", called, result)
    print({key: result[key]["score"] for key in ("before", "after")}, result["wins"])
