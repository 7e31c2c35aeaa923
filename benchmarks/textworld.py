"""Text games: what a small model from scratch scores after walkthroughs and after reinforcement
learning, beside random valid actions in the same games with the same number of steps.

    python -m benchmarks.textworld ALGORITHM SEED GAMES [OUT]

trains `configs/textworld.yaml` by `ppo` or `rejection` on the games tw-simple-42 to 48 of the
folder GAMES and writes benchmarks/results/textworld_ALGORITHM-SEED.json: the share of a game's
score on these games, and apart on games that training never saw: 49 to 51 and any other tw-simple,
coin and cooking games in the folder. Started again, it goes on from where it was.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.record import record
from benchmarks.tiny_gpt2 import tokenizer_of
from benchmarks.training import CONFIGS, train
from common.config.loader import load_run
from common.config.run import Run
from common.config.textworld import TextWorldEnvironment, TextWorldExamples
from common.data.conversations import load_pairs
from common.episode import Task
from common.seeding import derive
from common.storage.checkpoint import open_checkpoint
from deploy.text_games import write_walkthroughs
from learner.evaluation.intervals import bootstrap
from learner.policies.table import open_policy
from rollout.environments.textworld import TextWorld
from rollout.policies.play import play
from rollout.protocols import Observation

CONFIG = CONFIGS / "textworld.yaml"
LEARNT = tuple(f"tw-simple-{seed}" for seed in range(42, 49))
EPISODES = 3
"""Of each game in a measurement."""
STEPS = 15
"""Actions of an episode, at most, in training and in measurements."""
VOCABULARY, WIDTH, LAYERS, LENGTH = 1024, 128, 3, 1024
Scores = dict[str, list[float]]
"""Share of the highest score at the end of each episode, by game."""


def words_of(algorithm: str, seed: int, games: Path, out: Path) -> list[str]:
    """What is laid over the configuration."""
    made = out / f"textworld_data-{seed}"
    # Whole: another `path` leaves out what was said of the first.
    model = {"path": str(made / "model"), "interactions": 0, "max_tokens": LENGTH}
    files = [str(games / f"{name}.z8") for name in LEARNT]
    return [
        f"seed={seed}",
        f"name=textworld_{algorithm}-{seed}",
        f"runs={out}",
        f"data.train=[{made / 'walkthroughs.jsonl'}]",
        f"data.eval=[{made / 'held_out.jsonl'}]",
        f"model.causal={json.dumps(model)}",
        f"stages.lm_rl.algorithm={algorithm}",
        f"stages.lm_rl.max_turns={STEPS}",
        f"environment.games={json.dumps(files)}",
    ]


def prepare(words: list[str], seed: int, unseen: Sequence[Path], folder: Path) -> None:
    """Walkthroughs of the games to learn and of others, and a model that knows nothing."""
    held = f"environment.games={json.dumps([str(file) for file in unseen])}"
    write_walkthroughs([CONFIG], folder / "walkthroughs.jsonl", words)
    write_walkthroughs([CONFIG], folder / "held_out.jsonl", [*words, held])
    pairs = load_pairs(folder / "walkthroughs.jsonl")
    tokenizer = tokenizer_of([f"{pair.query} {pair.answer}" for pair in pairs], VOCABULARY)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=4,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def groups_of(games: Path) -> dict[str, list[Path]]:
    """The games of a folder by what training knows of them."""
    found: dict[str, list[Path]] = {"learnt": [games / f"{name}.z8" for name in LEARNT]}
    for file in sorted(games.glob("*.z8")):
        if file.stem not in LEARNT:
            kind = file.stem.split("-")[1]
            group = "unseen" if kind == "simple" else kind
            found.setdefault(group, []).append(file)
    return found


def plain(run: Run, file: Path) -> TextWorldEnvironment:
    """The run's environment with one game and no examples."""
    assert isinstance(run.environment, TextWorldEnvironment)
    alone = {"games": (str(file),), "examples": TextWorldExamples()}
    return run.environment.model_copy(update=alone)


def by_policy(run: Run, checkpoint: str, files: Sequence[Path]) -> Scores:
    opened = open_policy(open_checkpoint(checkpoint))
    found: Scores = {}
    for file in files:
        seeds = [derive(run.seed, "measured", file.name, i) for i in range(EPISODES)]
        tasks = [
            Task(f"{file.stem}-{i}", None, seed, environment="textworld", max_turns=STEPS)
            for i, seed in enumerate(seeds)
        ]
        episodes = play(opened.playing(run.rollout, plain(run, file)), tasks)
        found[file.stem] = [each.figures["score"] for each in episodes if each.figures]
    return found


def by_chance(run: Run, files: Sequence[Path]) -> Scores:
    """Random valid actions of those that prompts list."""
    return {
        file.stem: [
            scripted(
                plain(run, file),
                lambda game, draw: draw.choice(game.listed),
                derive(run.seed, "random", file.name, i),
            )
            for i in range(EPISODES)
        ]
        for file in files
    }


def scripted(
    settings: TextWorldEnvironment, choose: Callable[[TextWorld, random.Random], str], seed: int
) -> float:
    """Share of the score after at most `STEPS` chosen actions."""
    game, draw = TextWorld(settings), random.Random(seed)
    try:
        asked: Observation | None = game.reset(
            Task("random", None, seed, environment="textworld")
        ).observation
        share = 0.0
        for _ in range(STEPS):
            if asked is None:
                break
            outcome = game.step(choose(game, draw))
            asked, share = outcome.observation, outcome.figures["score"]
        return share
    finally:
        game.close()


def figure(scores: Scores) -> dict[str, Any]:
    """Mean over episodes with its 95 % interval, episodes drawn anew."""
    values = np.array([value for each in scores.values() for value in each])
    low, high = bootstrap(values[None], np.ones((1, len(values))))
    mean = float(values.mean())
    return {"mean": mean, "low": low[0], "high": high[0], "episodes": len(values)}


def gain(scores: Scores, other: Scores) -> dict[str, Any]:
    """Mean difference of two players, with its 95 % interval, over pairs of episodes of a game."""
    pairs = {
        name: [a - b for a, b in zip(values, other[name], strict=False)]
        for name, values in scores.items()
    }
    return figure(pairs)


def measure(run: Run, where: Path, groups: dict[str, list[Path]]) -> dict[str, Any]:
    """Each group's figures of the trained policy, of what it was after the walkthroughs, and of
    random valid actions."""
    steps = run.stages[0].total_steps
    before = where / "checkpoints" / f"step_{steps:08d}"
    found: dict[str, Any] = {}
    for group, files in groups.items():
        players = {"trained": by_policy(run, str(where), files), "random": by_chance(run, files)}
        if before.is_dir():
            players["walkthroughs"] = by_policy(run, str(before), files)
        found[group] = {name: figure(scores) for name, scores in players.items()}
        found[group]["gain_over_random"] = gain(players["trained"], players["random"])
        if "walkthroughs" in players:
            found[group]["gain_over_walkthroughs"] = gain(
                players["trained"], players["walkthroughs"]
            )
        found[group]["games"] = {
            name: {file.stem: float(np.mean(scores[file.stem])) for file in files}
            for name, scores in players.items()
        }
    return found


def run(algorithm: str, seed: int, games: Path, out: Path) -> dict[str, Any]:
    words, groups = words_of(algorithm, seed, games, out), groups_of(games)
    folder = out / f"textworld_data-{seed}"
    if not (folder / "model").is_dir():
        prepare(words, seed, groups["unseen"], folder)
    done, settings = train(CONFIG, words), load_run([CONFIG], words)
    learnt = done.rows("lm_rl")
    started = time.monotonic()
    measured = measure(settings, done.where, groups)
    return {
        "algorithm": algorithm,
        "seed": seed,
        "environment": done.environment,
        "iterations": len(learnt),
        "steps_of_an_episode": STEPS,
        "episodes_of_a_game": EPISODES,
        "stages": done.stage_seconds,
        "measuring_seconds": time.monotonic() - started,
        "returns": [row["objective/return"] for row in learnt],
        "scores": [row["rollout/environment{figure=score}"] for row in learnt],
        "invalid": [row["rollout/environment{figure=invalid}"] for row in learnt],
        "share_of_score": measured,
    }


if __name__ == "__main__":
    name, number, source = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
    target = Path(sys.argv[4] if len(sys.argv) > 4 else "runs").resolve()
    result = run(name, number, source, target)
    called = f"python -m benchmarks.textworld {name} {number} GAMES"
    record(f"textworld_{name}-{number}", called, result)
    for group, figures in result["share_of_score"].items():
        told = {key: figures[key] for key in ("trained", "random", "gain_over_random")}
        print(group, {key: round(each["mean"], 3) for key, each in told.items()})
