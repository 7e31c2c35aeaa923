"""A text memory against the last interactions, on generated conversations: what each recalls by
distance, and what an answer costs to read.

    python -m benchmarks.text_memory model FOLDER
    python -m benchmarks.text_memory SEED FOLDER [OUT]

The first makes a small Llama-shaped model from scratch with a tokenizer of these conversations. The
second trains FOLDER/model by the supervised stage of `configs/text_memory.yaml`, which teaches it
to copy. From there it trains twice, with a text memory and with the last interactions within as
many tokens, for the same time: by `lm_sft`, then by `lm_rl`. Writes
benchmarks/results/text_memory-SEED.json. Erased controls are those of `engram eval`. Started again,
it goes on from where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.record import record
from benchmarks.tiny_gpt2 import tokenizer_of
from benchmarks.training import CONFIGS, TrainedRun, train
from common.config.causal import TextMemorySettings
from common.config.loader import load_run
from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.episode import Episode
from common.storage.checkpoint import open_checkpoint
from learner.evaluation.evaluate import evaluate_checkpoint, evaluation_rows, evaluation_tasks
from learner.policies.table import CheckpointPolicy, open_policy
from rollout.policies.play import play

CONFIG = CONFIGS / "text_memory.yaml"
VOCABULARY, WIDTH, FEED_FORWARD, LAYERS, HEADS, POSITIONS = 512, 128, 352, 4, 4, 2048
KINDS = ("text", "window")
STEPS = 600
"""Of `lm_sft` with a text memory after the common start."""
PILOT_STEPS, PILOT_ITERATIONS = 40, 6
"""Of the short run that tells how long a step of each stage of the window takes."""


def make_model(folder: Path, run: Run, vocabulary: int = VOCABULARY) -> Path:
    """A causal model with untrained weights, which `from_pretrained` opens, with a tokenizer of the
    run's conversations and of the texts around memories."""
    around = TextMemorySettings()
    texts = [*load_corpus(run.data, run.seed).texts, *around.read_pieces, *around.write_pieces]
    tokenizer = tokenizer_of(texts, vocabulary)
    torch.manual_seed(run.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        max_position_embeddings=POSITIONS, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def words_of(kind: str, seed: int, model: Path, out: Path) -> list[str]:
    """What is laid over the configuration."""
    words = [
        f"seed={seed}",
        f"name=text_memory_{kind}-{seed}",
        f"runs={out}",
        f"model.causal.path={model}",
    ]
    if kind == "window":
        budget = load_run([CONFIG], words).model.causal.text_memory.tokens  # type: ignore[union-attr]
        words += ["model.causal.text_memory=null", f"model.causal.memory_tokens={budget}"]
    return words


def start(seed: int, model: Path, out: Path) -> TrainedRun:
    """The supervised stage with a text memory, which both begin with."""
    words = words_of("start", seed, model, out)
    supervised, _ = load_run([CONFIG], words).model_dump(mode="json")["stages"]
    return train(CONFIG, [*words, f"stages={json.dumps([supervised])}"])


def as_long(words: list[str], pilot: TrainedRun, wanted: Mapping[str, float]) -> list[str]:
    """Settings with which the stages of a run take as many seconds as wanted, by stage. pilot: a
    run of `PILOT_STEPS` and `PILOT_ITERATIONS`; the start of a stage is part of its seconds."""

    def fitting(stage: str, done: int) -> int:
        each = pilot.seconds_of_a_step(stage)
        start = pilot.stage_seconds[stage] - done * each
        return max(1, round((wanted[stage] - start) / each))

    run = load_run([CONFIG], words)
    planned = {step.name: step.iterations for step in run.stages[1].curriculum_steps}
    factor = fitting("lm_rl", PILOT_ITERATIONS) / sum(planned.values())
    return [
        f"stages.lm_sft.steps={fitting('lm_sft', PILOT_STEPS)}",
        *(
            f"stages.lm_rl.curriculum.{name}.iterations={max(1, round(count * factor))}"
            for name, count in planned.items()
        ),
    ]


def pilot_of(words: list[str], name: str) -> TrainedRun:
    """A run that tells how long steps take, with iterations of the last step of the curriculum:
    most are."""
    last = load_run([CONFIG], words).stages[1].curriculum_steps[-1]
    curriculum = [{"name": last.name, "iterations": PILOT_ITERATIONS, "max_steps": last.max_steps}]
    own = [
        f"stages.lm_sft.steps={PILOT_STEPS}",
        f"stages.lm_rl.curriculum={json.dumps(curriculum)}",
    ]
    return train(CONFIG, [*words, f"name={name}", *own])


def tokens_read(episodes: list[Episode], opened: CheckpointPolicy) -> dict[str, float]:
    """Tokens per answer: read before it, and read and generated to write the memory."""
    answers = sum(len(episode.answered) for episode in episodes)
    read, to_write, written = 0, 0, 0
    for episode in episodes:
        contexts = opened.tokenizer.memory.contexts(episode)
        for action, context in zip(episode.actions, contexts, strict=False):
            if action.kind == "memory":
                to_write, written = to_write + len(context), written + len(action.ids)
            else:
                read += len(context)
    named = {"before_answer": read, "before_memory": to_write, "of_memory": written}
    return {name: count / answers for name, count in named.items()}


def measured(where: Path, words: list[str]) -> dict[str, Any]:
    """Recall by distance with its controls, and tokens read, on held-out conversations."""
    run, opened = load_run([CONFIG], words), open_policy(open_checkpoint(str(where)))
    rows = evaluation_rows(load_corpus(run.data, run.seed).eval, run.evaluation.episodes)
    played = play(
        opened.playing(run.rollout, run.environment),
        evaluation_tasks(rows, run.seed, erase=False),
    )
    writes = [write for episode in played for write in episode.writes]
    return {
        "retention": evaluate_checkpoint(str(where))["retention"],
        "tokens_per_answer": tokens_read(played, opened),
        "cut": sum(write.cut for write in writes) / max(1, len(writes)),
    }


def benchmark(seed: int, model: Path, out: Path) -> dict[str, Any]:
    common = start(seed, model, out)
    text = [*words_of("text", seed, common.where, out), f"stages.lm_sft.steps={STEPS}"]
    done = train(CONFIG, text)
    seconds = done.stage_seconds
    found = {"text": measured(done.where, text) | {"seconds": seconds}}
    window = words_of("window", seed, common.where, out)
    window += as_long(window, pilot_of(window, f"text_memory_pilot-{seed}"), seconds)
    done = train(CONFIG, window)
    told = {"seconds": done.stage_seconds, "settings": window[-3:]}
    found["window"] = measured(done.where, window) | told
    return {
        "seed": seed,
        "environment": done.environment,
        "start": {"seconds": common.stage_seconds, "steps": common.summary["stages"][0]["steps"]},
    } | found


if __name__ == "__main__":
    asked, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if asked == "model":
        make_model(folder / "model", load_run([CONFIG], ["seed=1", "model.causal.path=none"]))
    else:
        out = Path(sys.argv[3] if len(sys.argv) > 3 else "runs").resolve()
        result = benchmark(int(asked), folder / "model", out)
        record(f"text_memory-{asked}", f"python -m benchmarks.text_memory {asked} FOLDER", result)
        for kind in KINDS:
            retention = result[kind]["retention"]
            print(kind, retention["memory"], retention["erased"], result[kind]["tokens_per_answer"])
