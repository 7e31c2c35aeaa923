"""Latent memory, text memory, the last interactions and the whole conversation, on the same
generated conversations: what each recalls, and what an answer costs as a conversation grows.

    python -m benchmarks.three_memories SEED [OUT] [--seconds 600]

Each model is made from scratch, has 0.8 to 0.9 million parameters and trains for as many seconds:
a Reactive Transformer by the supervised stages of `configs/mrl16.yaml`, a Llama-shaped causal model
by the stages of `configs/text_memory.yaml`, and one by `lm_sft` with either the last interactions
or all of them as its context. These two first write a text memory for half of their seconds: it
teaches them to copy, which they do not learn otherwise. Writes
benchmarks/results/three_memories-SEED.json. Started again, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.mrl16 import CONFIG as LATENT
from benchmarks.mrl16 import compared, conversations
from benchmarks.record import record
from benchmarks.text_memory import CONFIG as TEXT
from benchmarks.text_memory import POSITIONS as WHOLE
from benchmarks.text_memory import make_model, tokens_read
from benchmarks.training import TrainedRun, train
from common.config.loader import load_run
from common.config.run import Run
from common.episode import Row
from common.storage.checkpoint import open_checkpoint
from deploy.chat import open_session
from learner.evaluation.evaluate import evaluation_tasks
from learner.policies.table import open_policy
from rollout.policies.play import play
from rollout.protocols import Session

DATA = {"train": 8000, "steps": [2, 4, 8, 16]}
LENGTHS = (4, 8, 16, 32)
"""Follow-ups of test conversations."""
LONGEST, TALKS = 64, 3
"""Follow-ups, and number, of the conversations whose answers are timed."""
SPANS = ((1, 4), (13, 16), (29, 32), (61, 64))
"""Turns whose answers are taken together."""
BUDGET = 48
"""Tokens of a text memory and of the last interactions."""
SHAPE = {"width": 96, "decoder_ff": 288, "encoder_ff": 288}
PILOT = 20
"""Steps that tell how long one takes."""
SFT_SHARE = 0.6
"""Share of the seconds that a text memory is supervised for; the rest is `lm_rl`."""
COPYING_SHARE = 0.5
"""Share of the seconds in which the models without a text memory write one."""
CAUSAL: dict[str, dict[str, Any]] = {
    "window": {
        "text_memory": None, "interactions": LONGEST, "memory_tokens": BUDGET, "max_tokens": 192,
    },
    "whole": {
        "text_memory": None, "interactions": 4096, "memory_tokens": WHOLE - 128,
        "max_tokens": WHOLE,
    },
    "text": {"text_memory": {"tokens": BUDGET}, "max_tokens": 192},
}  # fmt: skip


def trained(config: Path, words: Sequence[str], out: Path, name: str) -> TrainedRun:
    return train(config, [*words, f"name={name}", f"runs={out}"])


def latent(seed: int, out: Path, data: Mapping[str, Any], seconds: float) -> Path:
    """Binding by conditions, then memory-aware training for the rest of the seconds."""
    settings = load_run([str(LATENT)], [f"seed={seed}"]).model_dump(mode="json")
    *first, aware = settings["stages"][:-1]
    shape = [f"model.{key}={value}" for key, value in SHAPE.items()]
    words = [f"seed={seed}", *shape, *(f"data.{key}={value}" for key, value in data.items())]
    aware = aware | {"max_follow_ups": None}

    def stages(steps: int) -> str:
        return f"stages={json.dumps([*first, aware | {'steps': steps}])}"

    name = f"three_memories-latent-{seed}"
    pilot = trained(LATENT, [*words, stages(10 * PILOT)], out, f"{name}-pilot")
    *bound, last = pilot.summary["stages"]
    left = seconds - sum(stage["wall_seconds"] for stage in bound)
    steps = max(1, round(10 * PILOT * left / last["wall_seconds"]))
    return trained(LATENT, [*words, stages(steps)], out, name).where


def causal(kind: str, seed: int, out: Path, words: Sequence[str], seconds: float) -> Path:
    """As many steps of `lm_sft`, and for a text memory iterations of `lm_rl`, as fit."""
    settings = load_run([str(TEXT)], list(words)).model_dump(mode="json")
    sft, reinforced = settings["stages"]
    name = f"three_memories-{kind}-{seed}"

    def stages(steps: int, iterations: int = 0) -> str:
        curriculum = [{"name": "all", "iterations": iterations, "max_steps": 8}]
        second = [reinforced | {"curriculum": curriculum}] if iterations else []
        return f"stages={json.dumps([sft | {'steps': steps}, *second])}"

    learns = kind == "text"
    pilot = trained(TEXT, [*words, stages(PILOT)], out, f"{name}-pilot")
    step = pilot.seconds_of_a_step()
    start = pilot.stage_seconds["lm_sft"] - PILOT * step
    share = SFT_SHARE if learns else 1.0
    steps = max(1, round((share * seconds - start) / step))
    iterations = 0
    if learns:
        words_of_rl = [*words, f"model.causal.path={pilot.where}"]
        only = f"stages={json.dumps([json.loads(stages(1, 4)[7:])[1]])}"
        tried = trained(TEXT, [*words_of_rl, only], out, f"{name}-pilot-rl")
        each = tried.seconds_of_a_step()
        start = tried.stage_seconds["lm_rl"] - 4 * each
        iterations = max(1, round(((1 - share) * seconds - start) / each))
    return trained(TEXT, [*words, stages(steps, iterations)], out, name).where


def costs(policy: Path, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Median seconds of an answer of the model with what it remembers after it, by turns. Memory
    holds its own answers, as in use."""
    session, _ = open_session(str(policy), None, 0.0, 0, None)
    took: dict[int, list[float]] = {}
    for row in rows:
        session.reset()
        session.remember(row.turns[0].query, row.turns[0].answer)
        for number, turn in enumerate(row.turns[1:], 1):
            took.setdefault(number, []).append(_seconds(session, turn.query))
    return {
        f"{first}-{last}": {
            "seconds": median(each for turn in range(first, last + 1) for each in took[turn])
        }
        for first, last in SPANS
    }


def tokens(policy: Path, settings: Run, follow_ups: int) -> dict[str, float]:
    """Tokens that a model reads for an answer of such a conversation: before it, and before and in
    what it keeps of it."""
    opened = open_policy(open_checkpoint(str(policy)))
    rows = conversations(settings, follow_ups)[:TALKS]
    rollout = settings.rollout.model_copy(update={"backend": "auto", "slots": TALKS})
    tasks = evaluation_tasks(rows, settings.seed, erase=False)
    episodes = play(opened.playing(rollout, settings.environment), tasks)
    if opened.kind == "causal":
        return tokens_read(episodes, opened)
    turns = [turn for episode in episodes for turn in episode.answered]
    before = sum(len(turn.query_ids) for turn in turns) / len(turns)
    written = sum(len(turn.remembered_ids) for turn in turns) / len(turns)
    return {"before_answer": before, "before_memory": written, "of_memory": 0.0}


def _seconds(session: Session, query: str) -> float:
    began = time.perf_counter()
    for _ in session.respond(query):
        pass
    return time.perf_counter() - began


def benchmark(seed: int, out: Path, seconds: float) -> dict[str, Any]:
    settings = load_run(
        [str(LATENT)], [f"seed={seed}", *(f"data.{key}={value}" for key, value in DATA.items())]
    )
    world = settings.model_dump(mode="json")["data"]
    own = out / f"three_memories-model-{seed}"
    model = make_model(own, settings, settings.tokenizer.vocab_size)
    policies = {"latent": latent(seed, out, DATA, seconds)}

    def learnt(kind: str, path: Path, share: float) -> Path:
        memory = CAUSAL["text" if kind == "copying" else kind]
        words = [f"seed={seed}", f"data={json.dumps(world)}"]
        words.append(f"model={json.dumps({'causal': {'path': str(path)} | memory})}")
        return causal(kind, seed, out, words, share * seconds)

    copying = learnt("copying", model, COPYING_SHARE)
    policies["text"] = learnt("text", model, 1.0)
    for kind in ("window", "whole"):
        policies[kind] = learnt(kind, copying, 1 - COPYING_SHARE)
    timed = conversations(settings, LONGEST)[:TALKS]
    return {
        "seed": seed,
        "environment": TrainedRun(policies["latent"]).environment,
        "seconds": {
            kind: TrainedRun(where).stage_seconds
            for kind, where in (policies | {"copying": copying}).items()
        },
        "lengths": {str(n): compared(settings, n, policies) for n in LENGTHS},
        "costs": {kind: costs(where, timed) for kind, where in policies.items()},
        "tokens": {
            kind: {str(n): tokens(where, settings, n) for n in (*LENGTHS, LONGEST)}
            for kind, where in policies.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("out", nargs="?", default="runs")
    parser.add_argument("--seconds", type=float, default=600.0)
    asked = parser.parse_args()
    result = benchmark(asked.seed, Path(asked.out).resolve(), asked.seconds)
    command = f"python -m benchmarks.three_memories {asked.seed} --seconds {asked.seconds:g}"
    record(f"three_memories-{asked.seed}", command, result)
    for kind, cost in result["costs"].items():
        exact = {n: result["lengths"][n][kind]["exact"]["all"] for n in result["lengths"]}
        print(kind, exact, {span: round(each["seconds"], 4) for span, each in cost.items()})
