"""Quality and recall when a model that remembers learns from preferences.

    python -m benchmarks.rlhf SEED [OUT]

makes generated talk in two tones (half of all answers end with an address to the user), trains a
model with memory on it, and a reward model of memory on pairs that prefer the address. From the
same weights it then trains, for the same number of episodes, by

* `both`: quality and recall together, each normalised by itself;
* `quality`: the reward model alone;
* `in_turn`: recall for the first half of the iterations, then the reward model alone;
* `recall`: recall alone.

Each is measured on held-out conversations: recall, exact answers with their intervals, and the
share of sampled answers in the preferred tone. Writes benchmarks/results/rlhf-SEED.json. Started
again, it goes on from where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, TrainedRun, train
from common.config.data import SynthData
from common.config.loader import load_run
from common.config.run import Run
from common.data.conversations import save_rows, value_counts
from common.data.datasets.synth import generate
from common.data.datasets.table import load_corpus
from common.data.preferences import Preference, save_preferences
from common.data.splits import conversation_hash
from common.episode import Interaction, Row
from common.seeding import derive
from common.storage.checkpoint import open_checkpoint
from common.telemetry.progress import QuietProgress
from learner.evaluation.evaluate import evaluate, evaluation_tasks
from learner.evaluation.figures import figures_json
from learner.evaluation.scoring_player import ScoringPlayer
from learner.policies.table import open_policy
from rollout.policies.play import play

ADDRESS = " friend"
TRAIN, EVAL, PREFERENCES, HELD_PREFERENCES = 12_000, 600, 1500, 300
ITERATIONS, EPISODES = 16, 128
MIXES: dict[str, tuple[str, str]] = {
    "both": ("both", "both"),
    "quality": ("quality", "quality"),
    "in_turn": ("recall", "quality"),
    "recall": ("recall", "recall"),
}
"""Mix of the first and of the second half of the iterations."""


def two_tones(rows: Sequence[Row], seed: int) -> list[Row]:
    """The conversations, half of whose answers end with the address."""

    def tone(row: int, turn: int, said: Interaction) -> Interaction:
        addressed = derive(seed, "tone", row, turn) % 2
        return replace(said, answer=said.answer + ADDRESS) if addressed else said

    found = []
    for number, row in enumerate(rows):
        opening, *others = (tone(number, turn, said) for turn, said in enumerate(row.turns))
        found.append(
            replace(row, query=opening.query, answer=opening.answer, interactions=tuple(others))
        )
    return found


def preferences(rows: Sequence[Row], seed: int) -> list[Preference]:
    """One pair of each conversation: an answer with the address against the same without."""
    found = []
    for number, row in enumerate(rows):
        turn = 1 + derive(seed, "pair", number) % len(row.interactions)
        said = row.turns[turn]
        plain = said.answer.removesuffix(ADDRESS)
        history = tuple((each.query, each.answer) for each in row.turns[:turn])
        answers = (plain + ADDRESS, plain)
        found.append(Preference(said.query, answers, history=history, group=conversation_hash(row)))
    return found


def write_data(seed: int, folder: Path) -> None:
    world = SynthData(
        kind="synth", train=TRAIN + PREFERENCES, eval=EVAL + HELD_PREFERENCES,
        steps=(1, 2, 3, 4, 5, 6), strategies=("single", "cumulative"), subjects=4, values=8,
        change_probability=0.5, distractors=0.4,
    )  # fmt: skip
    made = {name: two_tones(rows, seed) for name, rows in generate(world, seed).items()}
    save_rows(made["train"][:TRAIN], folder / "train.jsonl")
    save_rows(made["eval"][:EVAL], folder / "eval.jsonl")
    save_preferences(preferences(made["train"][TRAIN:], seed), folder / "preferences.jsonl")
    save_preferences(preferences(made["eval"][EVAL:], seed), folder / "held_preferences.jsonl")


def trained(config: str, name: str, seed: int, out: Path, *words: str) -> dict[str, Any]:
    """The run's summary, trained where that is not done."""
    own = [f"seed={seed}", f"name={name}", f"runs={out}", *words]
    return train(CONFIGS / config, own).summary


def mix(kind: str, reward_model: Path) -> dict[str, Any]:
    """Components of one of the mixes."""
    recall = {"weight": 0.5, "normalise": True}
    model = {"name": "quality", "path": str(reward_model), "weight": 0.5, "normalise": True}
    return {
        "bleu": None, "cosine": None, "length": None,
        "recall": recall if kind != "quality" else None,
        "models": [model] if kind != "recall" else [],
    }  # fmt: skip


def run(seed: int, out: Path) -> dict[str, Any]:
    """Everything that is measured with one seed."""
    folder = out / f"rlhf-{seed}-data"
    if not (folder / "held_preferences.jsonl").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_data(seed, folder)
    rows = {"kind": "rows", "train": [str(folder / "train.jsonl")]}
    rows["eval"] = [str(folder / "eval.jsonl")]
    data = f"data={json.dumps(rows)}"
    stages = load_run([CONFIGS / "demo.yaml"], []).model_dump(mode="json")["stages"][:-1]
    stages[-1]["steps"] = 300
    start, judge = out / f"rlhf-{seed}-start", out / f"rlhf-{seed}-judge"
    trained("demo.yaml", start.name, seed, out, data, f"stages={json.dumps(stages)}")
    pairs = {"kind": "preferences", "train": [str(folder / "preferences.jsonl")]}
    pairs["eval"] = [str(folder / "held_preferences.jsonl")]
    trained(
        "reward_memory.yaml", judge.name, seed, out, f"data={json.dumps(pairs)}",
        f"model.checkpoint={start}", "stages.reward_model.steps=100",
    )  # fmt: skip
    rest = dict.fromkeys(("single", "cumulative"), mix("recall", judge))
    policies, seconds = {"before": start}, {"before": 0.0}
    for name, halves in MIXES.items():
        own = out / f"rlhf-{seed}-{name}"
        steps = {f"half_{n}": mix(kind, judge) for n, kind in enumerate(halves, 1)}
        curriculum = [
            {"name": half, "iterations": ITERATIONS // 2, "max_steps": 6} for half in steps
        ]
        summary = trained(
            "rlhf.yaml", own.name, seed, out, data, f"model.checkpoint={start}",
            f"rewards={json.dumps({'steps': steps} | rest)}",
            f"stages.mrl.curriculum={json.dumps(curriculum)}",
            f"stages.mrl.episodes={EPISODES}", "evaluation.episodes=100",
        )  # fmt: skip
        policies[name], seconds[name] = own, summary["wall_seconds"]
    settings = load_run([CONFIGS / "rlhf.yaml"], [data, f"seed={seed}"])
    return {
        "seed": seed,
        "environment": TrainedRun(policies["both"]).environment,
        "episodes": ITERATIONS * EPISODES,
        "policies": {
            name: {**measured(settings, where), "seconds": seconds[name]}
            for name, where in policies.items()
        },
    }


def measured(settings: Run, where: Path) -> Mapping[str, Any]:
    """Recall and exact answers of a policy on held-out conversations, greedy as everywhere, and
    the share of addressed answers where it samples: the likelier tone is all that greedy answers
    have."""
    corpus = load_corpus(settings.data, settings.seed)
    values = value_counts(corpus.train)
    plain = settings.model_copy(update={"rewards": Run.model_fields["rewards"].default})
    checkpoint = open_checkpoint(str(where))
    player = ScoringPlayer(checkpoint, plain, None, list(values), EVAL, QuietProgress())
    found = evaluate(player, corpus.eval, settings.seed, values)
    tasks = evaluation_tasks(corpus.eval, settings.seed, erase=False)
    episodes = play(
        open_policy(checkpoint).playing(settings.rollout, settings.environment),
        [replace(task, greedy=False) for task in tasks],
    )
    answers = [turn.answer for episode in episodes for turn in episode.answered]
    shown = {name: found.figures[name] for name in ("recall", "exact")}
    return figures_json(shown) | {
        "addressed": sum(answer.endswith(ADDRESS) for answer in answers) / len(answers),
        "answers": len(answers),
    }


if __name__ == "__main__":
    number = int(sys.argv[1])
    result = run(number, Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
    record(f"rlhf-{number}", f"python -m benchmarks.rlhf {number}", result)
    for policy, figures in result["policies"].items():
        print(policy, round(figures["exact"]["all"], 3), round(figures["addressed"], 3))
