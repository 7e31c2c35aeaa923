"""The loop with people, with a scripted person: a lexicon's mood (benchmarks/vader.py) says which
answer is better, and is wrong in one of twenty. Asked for a demonstration, the person writes what
the reviewer wrote, where its mood is good, and skips the others.

    python -m benchmarks.tiny_gpt2 FOLDER FILE.txt … --steps 400 --width 96 --vocabulary 2048
    python -m benchmarks.feedback SEED FOLDER [OUT]

goes through the rounds of `configs/feedback.yaml` from start to end, by the commands and the page's
API that people use, and writes benchmarks/results/feedback-SEED.json: the mood of answers to
held-out prompts by the policy after each round, sampled with the same random numbers. Started
again, it goes on from where it was.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import record
from benchmarks.vader import mood
from common.config.feedback import Feedback
from common.config.loader import load_section
from common.data.conversations import load_pairs
from common.data.datasets.prompts import load_prompts
from common.failures import EXIT_DONE, EXIT_DRAINED
from common.seeding import derive
from deploy.feedback.answers import answers_of
from learner.evaluation.intervals import wilson

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "feedback.yaml"
NOISE = 0.05
GOOD = 0.5
"""Least mood of a review that is given as a demonstration."""
HELD_OUT = 1000
SECONDS = 1800.0
REPORTED = ("round", "new_rows", "written", "reward_model", "win_rate", "people")
COMMAND = [sys.executable, "-m", "deploy"]


def words_of(seed: int, folder: Path, out: Path) -> list[str]:
    """What is laid over the configuration."""
    return [
        f"seed={seed}",
        f"name=feedback-{seed}",
        f"runs={out}",
        f"policy.data.train=[{folder / 'prompts.jsonl'}]",
        f"policy.data.eval=[{folder / 'held_out.jsonl'}]",
        f"policy.model.causal.path={folder / 'model'}",
        f"reward_model.stages.reward_model.backbone={folder / 'model'}",
    ]


def judge(where: Path, seed: int, known: Mapping[str, str]) -> dict[str, int]:
    """Answer all open questions of a loop over the page's API; how many of each kind. known: how
    the reviews go on, by prompt."""
    page = [*COMMAND, "label", str(where), "--port", "0"]
    server = subprocess.Popen(page, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    told = {"ranked": 0, "alike": 0, "turned": 0, "demonstrated": 0, "skipped": 0}
    try:
        assert server.stdout is not None
        address = "http" + server.stdout.readline().partition(": http")[2].split()[0]
        state = post(address, "next", {"labeller": "lexicon"})
        while state["question"] is not None:
            question = state["question"]
            body = {
                "id": f"{question['id']}-{seed}",
                "labeller": "lexicon",
                "question": question["id"],
            }
            if question["answers"]:
                body |= {"verdict": "ranked", "ranks": ranks_of(question, seed, told)}
            else:
                body |= demonstration(question["prompt"], known, told)
            state = post(address, "judge", body)
    finally:
        server.terminate()
        server.wait(30)
    return told


def post(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def demonstration(prompt: str, known: Mapping[str, str], told: dict[str, int]) -> dict[str, str]:
    """How the review goes on, where its mood is good."""
    rest = known.get(prompt, "")
    if not rest or mood(f"{prompt} {rest}") < GOOD:
        told["skipped"] += 1
        return {"verdict": "skipped"}
    told["demonstrated"] += 1
    return {"verdict": "demonstration", "written": rest}


def ranks_of(question: dict[str, Any], seed: int, told: dict[str, int]) -> list[int]:
    """Ranks by mood; in one of twenty the other way round."""
    moods = [mood(f"{question['prompt']} {answer}") for answer in question["answers"]]
    if random.Random(derive(seed, "noise", question["id"])).random() < NOISE:
        moods = [-each for each in moods]
        told["turned"] += 1
    order = sorted(set(moods), reverse=True)
    told["ranked" if len(order) > 1 else "alike"] += 1
    return [order.index(each) + 1 for each in moods]


def run(seed: int, folder: Path, out: Path) -> dict[str, Any]:
    words = words_of(seed, folder, out)
    loop = load_section(Feedback, {}, [CONFIG], words)
    known = {each.query: each.answer.strip() for each in load_pairs(folder / "pairs.jsonl")}
    where, began, labels = out / loop.name, time.monotonic(), []
    while True:
        done = subprocess.run(
            [*COMMAND, "feedback", str(CONFIG), *words], cwd=ROOT, timeout=SECONDS, check=False
        )
        if done.returncode == EXIT_DONE:
            break
        if done.returncode != EXIT_DRAINED:
            raise SystemExit(f"engram feedback ended with {done.returncode}")
        labels.append(judge(where, seed, known))
    seconds = time.monotonic() - began
    state = json.loads((where / "feedback.json").read_text())
    rows = [row for name in loop.policy.data.eval for row in load_prompts(name)][:HELD_OUT]  # type: ignore[union-attr]
    moods = []
    for number in range(len(state["rounds"]) + 1):
        given = answers_of(loop, number, rows, seed)
        moods.append(
            torch.tensor(
                [
                    mood(f"{row.interactions[0].query} {told[0]}")
                    for row, told in zip(rows, given, strict=True)
                ]
            )
        )
    return {
        "seed": seed,
        "questions": loop.questions,
        "noise": NOISE,
        "held_out": len(rows),
        "seconds": seconds,
        "labels": labels,
        "reason": state["reason"],
        "demonstrations": state.get("demonstrations"),
        "rounds": [{key: each.get(key) for key in REPORTED} for each in state["rounds"]],
        "scores": [
            {"round": number, "mean": float(each.mean()), "error": error_of(each)}
            for number, each in enumerate(moods)
        ],
        "first_to_last": gain(moods[-1] - moods[1]),
        "start_to_last": gain(moods[-1] - moods[0]),
        "wins_start": wins(moods[-1], moods[0]),
    }


def gain(difference: torch.Tensor) -> dict[str, float]:
    """Mean difference over prompts, with its standard error."""
    return {"mean": float(difference.mean()), "error": error_of(difference)}


def error_of(values: torch.Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def wins(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Share of prompts whose answer has the better mood, half of each tie, with its interval."""
    share = float(((ours > theirs) + 0.5 * (ours == theirs)).mean())
    low, high = wilson(share, len(ours))
    return {"share": share, "low": low, "high": high}


if __name__ == "__main__":
    seed, folder = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    out = Path(sys.argv[3] if len(sys.argv) > 3 else "runs").resolve()
    result = run(seed, folder, out)
    record(f"feedback-{seed}", f"python -m benchmarks.feedback {seed} FOLDER", result)
    print(result["scores"], result["first_to_last"], f"{result['seconds']:.0f} s")
