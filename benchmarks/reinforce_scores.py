"""REINFORCE paid by a scalar reward model, by one with ten scores, and by the second with
advantages divided by 1 + the spread of the score: the published experiment of
`configs/reinforce_smollm*.yaml` on a small GPT-2.

    python -m benchmarks.tiny_gpt2 FOLDER FILE.txt … --steps 400 --width 96 --vocabulary 2048
    python -m benchmarks.reinforce_scores SEED FOLDER [OUT]

Pairs are two answers of FOLDER/model to a prompt, of which that with the better mood
(benchmarks/vader.py) is chosen, the other one in one of twenty; four pairs to a prompt. Half of the
prompts train the two reward models, the other half a third one, which judges and which no policy is
paid by.

Writes benchmarks/results/reinforce_scores-SEED.json: mean reward of answers to held-out prompts
before and after, and the share that the third model prefers to those before. Started again, it goes
on from where it was.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import record
from benchmarks.sentiment import held_out
from benchmarks.tiny_gpt2 import words_of_folder
from benchmarks.training import CONFIGS, TrainedRun, train
from benchmarks.vader import mood
from common.config.loader import load_run
from common.data.datasets.prompts import load_prompts
from common.data.preferences import Preference, save_preferences
from common.episode import Episode
from common.models.causal import open_causal
from common.storage.checkpoint import open_checkpoint
from deploy.feedback.answers import rewards_of
from learner.evaluation.preferences import evaluate_reward_model
from learner.evaluation.prompts import prompt_tasks, win_figures
from learner.policies.table import CheckpointPolicy, open_policy
from reward_service.reward_models.serving import open_model
from rollout.policies.play import play

MODELS = {
    "scalar": ("reward_smollm.yaml", "train"),
    "scores": ("reward_smollm_scores.yaml", "train"),
    "judge": ("reward_smollm.yaml", "judge"),
}
POLICIES = {
    "scalar": ("reinforce_smollm.yaml", "scalar"),
    "scores": ("reinforce_smollm_scores.yaml", "scores"),
    "doubt": ("reinforce_smollm_doubt.yaml", "scores"),
}
NOISE, PROMPTS, PAIRS_EACH = 0.05, 6000, 4
REWARD_STEPS, REWARD_RATE = 600, 3e-4
ITERATIONS, RATE, TOKENS = 200, 2e-5, 16


def trained(config: str, name: str, out: Path, *words: str) -> TrainedRun:
    return train(CONFIGS / config, [f"name={name}", f"runs={out}", *words])


def write_pairs(folder: Path, out: Path) -> dict[str, Path]:
    """Files of preferences by what they train."""
    files = {half: out / f"reinforce_scores-{half}.jsonl" for half in ("train", "judge")}
    if all(file.is_file() for file in files.values()):
        return files
    words = [f"model.causal.path={folder / 'model'}", f"data.train=[{folder / 'prompts.jsonl'}]"]
    run = load_run([CONFIGS / "sentiment_small.yaml"], words)
    assert run.model.causal is not None, "the configuration has a causal model"
    opened = CheckpointPolicy("causal", *open_causal(run.model.causal))
    rows = load_prompts(str(folder / "prompts.jsonl"))[:PROMPTS]
    answers = [
        play(opened.playing(run.rollout, run.environment), prompt_tasks(rows, seed))
        for seed in range(1, 1 + 2 * PAIRS_EACH)
    ]
    pairs = [
        pair
        for each in zip(*answers, strict=True)
        for pair in zip(each[::2], each[1::2], strict=True)
    ]
    draws, found = random.Random(1), []
    for one, other in pairs:
        told = sorted((_mood(each), each.answered[0].answer) for each in (one, other))
        (low, worse), (high, better) = told
        if high == low:
            continue
        chosen = (better, worse) if draws.random() >= NOISE else (worse, better)
        if all(map(str.strip, chosen)):
            found.append(Preference(one.answered[0].query, chosen, margin=high - low))
    half = len(found) // 2
    save_preferences(found[:half], files["train"])
    save_preferences(found[half:], files["judge"])
    return files


def reward_models(folder: Path, out: Path) -> dict[str, Path]:
    files = write_pairs(folder, out)
    return {
        name: trained(
            config, f"reinforce_scores-{name}", out, f"data.train=[{files[half]}]",
            f"stages.reward_model.backbone={folder / 'model'}", "stages.reward_model.lora=null",
            f"stages.reward_model.steps={REWARD_STEPS}", "stages.reward_model.max_tokens=64",
            f"stages.reward_model.optimizer.learning_rate={REWARD_RATE:.6f}",
        ).where
        for name, (config, half) in MODELS.items()
    }  # fmt: skip


def policy_words(seed: int, folder: Path, model: Path, config: str) -> list[str]:
    (paid,) = load_run([CONFIGS / config]).rewards.cumulative.models
    models = [paid.model_dump(mode="json") | {"path": str(model)}]
    return [
        f"seed={seed}",
        *words_of_folder(folder),
        "model.causal.lora=null",
        "model.causal.max_tokens=64",
        f"stages.lm_rl.iterations={ITERATIONS}",
        f"stages.lm_rl.optimizer.learning_rate={RATE:.6f}",
        f"rollout.sampling.max_new_tokens={TOKENS}",
        f"rewards.cumulative.models={json.dumps(models)}",
        "learner.checkpoint_every=100",
        "evaluation.episodes=16",
    ]


def judge_of(where: Path) -> Callable[[Episode], float]:
    """The reward of an answer as training is paid: the probability of a scalar, or the expected
    score."""
    model = open_model(str(where), "transformers")

    @cache
    def judged(query: str, answer: str) -> float:
        (value,) = rewards_of(model, [(query, answer)])
        return float(torch.tensor(value).sigmoid()) if model.levels == 1 else value

    return lambda episode: judged(episode.answered[0].query, episode.answered[0].answer)


def _mood(episode: Episode) -> float:
    return mood(f"{episode.answered[0].query} {episode.answered[0].answer}")


def run(seed: int, folder: Path, out: Path) -> dict[str, Any]:
    models = reward_models(folder, out)
    judges = {name: judge_of(where) for name, where in models.items()} | {"mood": _mood}
    found: dict[str, Any] = {
        "seed": seed,
        "settings": {"iterations": ITERATIONS, "batch": 16, "learning_rate": RATE},
        "models": {
            name: evaluate_reward_model(str(where))["preferences"]["with_history"]
            for name, where in models.items()
        },
        "policies": {},
    }
    for kind, (config, paid_by) in POLICIES.items():
        words = policy_words(seed, folder, models[paid_by], config)
        done = trained(config, f"reinforce_scores-{kind}-{seed}", out, *words)
        settings = load_run([CONFIGS / config], words)
        assert settings.model.causal is not None, "the configuration has a causal model"
        start = CheckpointPolicy("causal", *open_causal(settings.model.causal))
        before, played = held_out(settings, start, judges, settings.model.causal)
        after, others = held_out(settings, open_policy(open_checkpoint(str(done.where))), judges)
        found["environment"] = done.environment
        found["policies"][kind] = {
            "paid_by": paid_by,
            "before": before,
            "after": after,
            "wins": win_figures(
                [judges["judge"](each) for each in others],
                [judges["judge"](each) for each in played],
            ),
        }
    return found


if __name__ == "__main__":
    number, models_at = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    target = Path(sys.argv[3] if len(sys.argv) > 3 else "runs").resolve()
    target.mkdir(parents=True, exist_ok=True)
    result = run(number, models_at, target)
    called = f"python -m benchmarks.reinforce_scores {number} FOLDER"
    record(f"reinforce_scores-{number}", called, result)
    for kind, each in result["policies"].items():
        own = each["paid_by"]
        print(kind, each["before"][own], each["after"][own], each["wins"]["share"])
