"""Runs of a tiny causal language model on prompts, for tests and for processes that they start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.config.run import Run
from tests.tiny_causal import SENTENCES, WIDE, write_model


def judge(folder: Path) -> dict[str, str]:
    """A reward that training does not use: how long an answer is."""
    (folder / "judge.py").write_text("def words(turn):\n    return len(turn.answer.split()) / 10\n")
    return {"name": "words", "path": f"{folder / 'judge.py'}:words"}


def causal_run(folder: Path, name: str = "causal", **causal: Any) -> Run:
    if not (folder / "model").exists():
        write_model(folder / "model", changes=WIDE["gpt2"])
    words = [line.split() for line in SENTENCES]
    prompts = [{"prompt": " ".join(each[: 2 + k])} for k in range(4) for each in words]
    prompts.append({"prompt": "film " * 30})
    pairs = [{"query": " ".join(each[:3]), "answer": " ".join(each[3:])} for each in words]
    for file, records in (("prompts", prompts), ("pairs", pairs)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{file}.jsonl").write_text(text)
    return Run.model_validate(
        {
            "name": name,
            "runs": str(folder),
            "seed": 5,
            "data": {
                "kind": "prompts",
                "train": [str(folder / "prompts.jsonl")],
                "pairs": [str(folder / "pairs.jsonl")],
                "eval_fraction": 0.3,
                "max_prompt_tokens": 20,
            },
            "model": {"causal": {"path": str(folder / "model")} | causal},
            "stages": [
                {"stage": "lm_sft", "steps": 2, "batch_size": 4},
                {"stage": "lm_rl", "episodes": 6, "iterations": 3},
            ],
            "environment": {"kind": "single_turn"},
            "rollout": {"workers": 1, "slots": 4, "sampling": {"max_new_tokens": 6}},
            "learner": {"checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 9},
            "evaluation": {"episodes": 4, "judge": {"functions": [judge(folder)]}},
            "rewards": {
                "cumulative": {"bleu": None, "cosine": None, "recall": None, "length": None}
                | {"repetition": {"weight": 1.0}}
            },
        }
    )
